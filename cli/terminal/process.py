"""What the process of a command is given by its caller: streams, and a limit of open files."""

import contextlib
import errno
import os
import sys
from pathlib import Path


def prepare_streams() -> None:
    """Let no character stop a command that an ASCII terminal cannot show, nor a closed stream."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the caller: `actcache info s.zarr >&-`
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def raise_file_limit() -> None:
    """Allow as many open files as the system does: a mapped shard of a store is one."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def is_file_limit(error: Exception) -> bool:
    """Whether too many files are open."""
    return isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)
