"""The names of the room are callable whatever was imported before; `test_layout` has the rest."""

import subprocess
import sys

import pytest

CODE = """
import actcache.engine.self_check
import actcache.engine as engine
for name in engine.__all__:
    assert callable(getattr(engine, name)), name
"""


@pytest.mark.model
def test_every_name_is_imported_on_first_use_after_one_of_its_modules():
    subprocess.run([sys.executable, "-c", CODE], check=True)
