"""Writes README's generated parts: `python -m tests.fill_readme [file with the demo's output]`.

The help of each command, the format's text and the tree come from the code itself; test_readme
fails where they are out of date.
"""

import argparse
import ast
import os
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

from actcache.cli.main import parser
from actcache.store import schema

README = Path(__file__).parents[1] / "README.md"
STORE_README = README.parent / "actcache" / "store" / "README.md"
FOLDERS = {
    "actcache": "rows and model → store",
    "actcache/encoders": "prompts → vectors",
    "actcache/exchange": "stores and results ↔ other formats",
    "actcache/demo": "the built-in model and behaviors",
    "analysis": "store → answers",
    "cli": "parse, call, print",
    "benchmarks": "one question a script",
    "tests": "reference.py: every definition as a plain loop",
}


def commands() -> str:
    """The help of each command, 100 columns wide."""
    os.environ["COLUMNS"] = "100"
    choices = next(
        action.choices
        for action in parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    return "\n".join(
        f"### actcache {name}\n\n```\n{command.format_help().rstrip()}\n```\n"
        for name, command in choices.items()
    )


def tree() -> str:
    """Each file with the first sentence of its docstring."""
    return "\n".join(["```", *_tree_lines(), "```"])


def _tree_lines() -> Iterator[str]:
    for folder, about in FOLDERS.items():
        yield f"{folder}/".ljust(26) + f"  # {about}"
        for path in sorted((README.parent / folder).glob("*.py")):
            if folder != "tests" and path.stem not in ("__init__", "__main__"):
                about = textwrap.shorten(_first_sentence(path), 88, placeholder=" …")
                yield f"    {path.name}".ljust(26) + f"  # {about}"


def _first_sentence(path: Path) -> str:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    first = " ".join(text.split("\n\n")[0].split()) + " "
    return re.split(r"(?<=[a-z)`])[.;:] ", first)[0].strip().rstrip(".")


def filled(text: str, name: str, part: str) -> str:
    """`text` with `part` between the marks of that name."""
    marks = re.compile(rf"(<!-- {name} -->\n).*?(?=<!-- /{name} -->)", re.DOTALL)
    assert marks.search(text), f"README has no marks <!-- {name} -->"
    return marks.sub(lambda found: f"{found[1]}{part}\n", text)


def main() -> None:
    """Write the file."""
    text = README.read_text(encoding="utf-8")
    text = filled(text, "commands", commands())
    text = filled(text, "tree", tree())
    if len(sys.argv) > 1:
        # No machine's paths, and no spaces that a table's width leaves at the end of a line.
        shown = Path(sys.argv[1]).read_text(encoding="utf-8").replace(f"{README.parent}/", "")
        shown = "\n".join(line.rstrip() for line in shown.rstrip().splitlines())
        text = filled(text, "transcript: demo", f"```\n$ actcache demo\n{shown}\n```")
    README.write_text(text, encoding="utf-8")
    fill_store_readme()


def fill_store_readme() -> None:
    """Write the format into the README of the store."""
    text = STORE_README.read_text(encoding="utf-8")
    format_text = (schema.__doc__ or "").split("\n\n", 1)[1].strip()
    STORE_README.write_text(filled(text, "format", f"{format_text}\n"), encoding="utf-8")


if __name__ == "__main__":
    main()
