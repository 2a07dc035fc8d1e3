"""The charts' library as one script, which takes over a second to put together.

It depends on its versions alone, so it is kept in the user's cache folder. A file there that is
damaged, or cannot be written, costs that second again and nothing else.
"""

from functools import cache
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

from actcache.errors import ActcacheError
from actcache.store.storage.atomic import atomic_path, make_folder
from actcache.store.storage.user_cache import cache_folder

_SNIPPET = "window.vegaEmbed = vegaEmbed;"
"""What the script gives the page."""


@cache
def chart_library() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as one script."""
    try:
        path = _path()
        script = _read(path)
    except (OSError, RuntimeError):  # no home folder, or one that cannot be read
        return _bundle()
    if script is None:
        script = _bundle()
        _keep(path, script)
    return script


def _bundle() -> str:
    import vl_convert

    script: str = vl_convert.javascript_bundle(_SNIPPET)
    return script


def _path() -> Path:
    """The file of this version of the library and of the snippet."""
    words = f"{version('vl-convert-python')}\n{_SNIPPET}"
    return cache_folder() / f"charts-{sha256(words.encode()).hexdigest()[:16]}.js"


def _read(path: Path) -> str | None:
    """The script of a file; None if there is none, or if it is not what its first line says."""
    try:
        head, _, script = path.read_bytes().partition(b"\n")
    except FileNotFoundError:
        return None
    if head.decode("ascii", "replace") != f"// {sha256(script).hexdigest()}":
        return None
    return script.decode("utf-8")


def _keep(path: Path, script: str) -> None:
    """Write the file, if it can be written."""
    content = script.encode()
    try:
        make_folder(path.parent)
        with atomic_path(path) as temporary:
            temporary.write_bytes(f"// {sha256(content).hexdigest()}\n".encode() + content)
    except (OSError, ActcacheError):
        return
