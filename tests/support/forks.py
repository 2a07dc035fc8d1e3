"""Python in a fork of a process that has imported what takes long, and nothing else has happened in."""

import contextlib
import io
import multiprocessing
import sys
import textwrap
import traceback

IMPORTED = [
    *("actcache.exchange", "actcache.cli.main", "actcache.store.store", "actcache.store.verify"),
    *("actcache.store.writing.writer", "h5py", "tests.support.stores", "zarr"),
]
"""What the process imports which is forked: nothing with threads."""


def run_in_fork(code, *args):
    """Run code as `run_code` does, in a second less; return what it printed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(textwrap.dedent(code), [*map(str, args)], writer))
    process.start()
    writer.close()
    try:
        printed, error = reader.recv()
    except EOFError:  # it was killed, or ended itself
        printed, error = "", "nothing was sent back"
    process.join()
    reader.close()
    assert not error, f"exit code {process.exitcode}: {error}"
    assert process.exitcode == 0
    return printed


def _run(code, args, writer):
    sys.argv = ["-c", *args]
    error = ""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            exec(compile(code, "<code of a test>", "exec"), {"__name__": "__main__"})
        except BaseException:
            error = traceback.format_exc()
    writer.send((out.getvalue(), error))
