"""What importing the encoders may cost, and whom they may import."""

import ast

from tests.support.processes import ROOT, run_code


def test_importing_encoders_imports_neither_torch_nor_openai():
    code = (
        "import sys; import actcache.encoders\n"
        "print([m for m in ('torch', 'openai', 'transformers', 'sklearn') if m in sys.modules])"
    )
    assert run_code(code).stdout == "[]\n"


def test_encoders_import_neither_analyses_nor_command_line():
    for path in (ROOT / "actcache" / "encoders").glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert ast.get_docstring(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                assert not (node.module or "").startswith(("actcache.analysis", "actcache.cli"))
