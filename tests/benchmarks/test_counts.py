"""Are lines counted as what they are?"""

from benchmarks.counts import count, main

SOURCE = '''"""A module.

Two lines of text.
"""

import os  # a comment behind code is code

# a comment
LIMIT = 3
"""An attribute's docstring."""

TEXT = """
# not a comment
"""


class Thing:
    """A class."""

    @property
    def size(self):
        """Return it."""

        return os.sep  # code
'''


def test_lines_are_code_docstring_comment_or_blank():
    counted = count(SOURCE, "a.py")

    assert (counted.docstring, counted.comment) == (4 + 1 + 1 + 1, 1)
    # import, LIMIT, TEXT (3), class, decorator, def, return
    assert counted.code == 9
    assert counted.lines == len(SOURCE.splitlines())
    [function] = counted.functions
    assert (function.name, function.lines) == ("a.py:size", 5)


def test_two_checkouts_stand_side_by_side(tmp_path, capsys):
    for name, n_functions in (("old", 1), ("new", 2)):
        for folder in ("actcache/store", "tests", "analysis"):
            (tmp_path / name / folder).mkdir(parents=True)
        (tmp_path / name / "actcache" / "store" / "a.py").write_text(SOURCE)
        (tmp_path / name / "actcache" / "store" / "__init__.py").write_text("X = 1\n")
        (tmp_path / name / "analysis" / "b.py").write_text("X = 1\n")
        (tmp_path / name / "actcache" / "analysis").symlink_to("../analysis")
        tests = "".join(f"def test_{i}():\n    assert True\n\n\n" for i in range(n_functions))
        (tmp_path / name / "tests" / "test_a.py").write_text(tests)

    main([str(tmp_path / "old"), str(tmp_path / "new"), "--rounds", "0"])

    printed = capsys.readouterr().out
    assert "| test functions | 1 | 2 |" in printed
    assert "| modules | 2 | 2 |" in printed  # the link is not counted again, nor is __init__.py
    assert "| lines of code | 11 | 11 |" in printed
    assert "| actcache/store | 1 | 1 | 10 | 10 | 7 | 7 |" in printed
