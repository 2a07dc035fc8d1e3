"""What is left of an error that nobody foresaw: its full trace in a file, without keys."""

import os
import re
import tempfile
import traceback

_IN_ADDRESS = re.compile(
    r"(?<=://)[^/\s'\"]*@|(?<=[?&])([\w-]*(key|token|secret|password)[\w-]*=)[^&\s'\"]+"
)


def keep_trace(error: Exception) -> str:
    """Write the trace of an error to a file; return the line that says so.

    Keys are removed: values of environment variables whose names end in KEY, TOKEN or SECRET, and
    what stands in addresses as user, password or key.
    """
    text = without_secrets("".join(traceback.format_exception(error)))
    try:
        handle, name = tempfile.mkstemp(prefix="actcache-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except OSError:
        name = "nowhere, since no temporary file can be written"
    message = without_secrets(str(error))
    first = next(iter(message.splitlines()), "")[:200]
    return (
        f"stopped by a mistake in actcache ({type(error).__name__}: {first}); its full trace is in "
        f"'{name}'. Please report it with that file."
    )


def without_secrets(text: str) -> str:
    """Replace keys of the environment and of addresses by `…`."""
    for name, value in os.environ.items():
        if len(value) >= 8 and name.upper().endswith(("KEY", "TOKEN", "SECRET", "PASSWORD")):
            text = text.replace(value, "…")
    return _IN_ADDRESS.sub(lambda match: f"{match[1] or ''}…", text)
