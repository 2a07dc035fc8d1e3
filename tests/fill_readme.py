"""Writes the generated parts of the READMEs: `python -m tests.fill_readme [FILE]`.

The store's format comes from the schema. FILE holds what `actcache demo` printed into a pipe; the
top README shows its tables.
"""

import re
import sys
from pathlib import Path

from actcache.store import schema

README = Path(__file__).parents[1] / "README.md"
STORE_README = README.parent / "actcache" / "store" / "README.md"
STEERED = "Effect on test rows"
"""What the title of the table of steered texts begins with."""


def filled(text: str, name: str, part: str) -> str:
    """Put `part` between the marks of that name."""
    marks = re.compile(rf"(<!-- {name} -->\n).*?(?=<!-- /{name} -->)", re.DOTALL)
    assert marks.search(text), f"README has no marks <!-- {name} -->"
    return marks.sub(lambda start: f"{start[1]}{part}\n", text)


def transcript(output: str) -> str:
    """Cut the demo's output down to what the analysis found, from its first finding on."""
    lines = [line.rstrip() for line in output.splitlines()]
    start = next(i for i, line in enumerate(lines) if line.startswith("certificate")) + 1
    end = next(i for i, line in enumerate(lines) if line.startswith("all tables, ")) + 1
    return "\n".join(["```", "$ actcache demo", "[…]", *lines[start:end], "```"])


def steered_transcript(output: str) -> str:
    """Cut the part on steered texts down to its table."""
    before, after = output.split(STEERED)
    lines = [line.rstrip() for line in (before.splitlines()[-1] + STEERED + after).splitlines()]
    sentences = next(i for i, line in enumerate(lines) if line and not line.startswith(" "))
    return "\n".join(["```", *lines[:sentences], "[…]", "```"])


def main() -> None:
    """Write both files."""
    text = STORE_README.read_text(encoding="utf-8")
    format_text = (schema.__doc__ or "").split("\n\n", 1)[1].strip()
    STORE_README.write_text(filled(text, "format", format_text + "\n"), encoding="utf-8")
    if len(sys.argv) > 1:
        output = Path(sys.argv[1]).read_text(encoding="utf-8")
        text = README.read_text(encoding="utf-8").replace(f"{README.parent}/", "")
        text = filled(text, "transcript: demo", transcript(output))
        text = filled(text, "transcript: steered", steered_transcript(output))
        README.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
