"""The names of the room: imported on first use, whatever was imported before."""

import subprocess
import sys

import pytest

CODE = """
import sys
{before}
import actcache.engine as engine
assert {heavy} or "torch" not in sys.modules
for name in engine.__all__:
    assert callable(getattr(engine, name)), name
"""


@pytest.mark.model
@pytest.mark.parametrize(
    ("before", "heavy"), [("", False), ("import actcache.engine.self_check", True)]
)
def test_every_name_is_imported_on_first_use(before, heavy):
    code = CODE.format(before=before, heavy=heavy)

    subprocess.run([sys.executable, "-c", code], check=True)
