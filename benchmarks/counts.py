"""How large is the project, room by room, and how fast does it start?

Prints Markdown: an overview with one column a checkout, then a table of rooms. Lines are counted
with ast and tokenize: a line of a docstring (of attributes too) is docstring, a line that holds
only a comment is comment. `__init__.py` counts as lines but not as a module. Starts are measured in
turns with each checkout's own `.venv/bin/python` where it has one.
"""

import argparse
import ast
import io
import os
import statistics
import subprocess
import sys
import time
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PRODUCT = ("actcache", "analysis", "cli")
STARTS: Mapping[str, tuple[str, ...]] = {
    "`python -c pass`, s": ("-c", "pass"),
    "`import actcache`, s": ("-c", "import actcache"),
    "`actcache --help`, s": ("-m", "actcache", "--help"),
}


@dataclass(frozen=True)
class Function:
    """A function or method, and how long it is."""

    name: str
    """`path:name`"""

    lines: int
    """From the first decorator to the last line."""


@dataclass(frozen=True)
class SourceFile:
    """What one .py file holds."""

    path: str
    code: int
    docstring: int
    comment: int
    blank: int
    functions: tuple[Function, ...]

    @property
    def lines(self) -> int:
        """All lines."""
        return self.code + self.docstring + self.comment + self.blank

    @property
    def is_module(self) -> bool:
        """Whether it is a module rather than the `__init__.py` of a folder."""
        return not self.path.endswith("__init__.py")

    @property
    def room(self) -> str:
        """The folder in which it lies."""
        return str(Path(self.path).parent)


@dataclass(frozen=True)
class Checkout:
    """All that is counted in one checkout."""

    folder: Path
    product: tuple[SourceFile, ...]
    tests: tuple[SourceFile, ...]
    benchmarks: tuple[SourceFile, ...]
    readme_lines: int
    starts: dict[str, list[float]] = field(default_factory=dict)
    """Seconds of each of `STARTS`, one a round."""


def count(source: str, path: str) -> SourceFile:
    """Count the lines of one file by kind, and measure its functions."""
    tree = ast.parse(source)
    docstring: set[int] = set()
    functions = []
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            docstring |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            length = (node.end_lineno or first) - first + 1
            functions.append(Function(f"{path}:{node.name}", length))
    with_code, with_comment = set(), set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            with_comment.add(token.start[0])
        elif token.string.strip() and token.type not in (tokenize.NEWLINE, tokenize.ENDMARKER):
            with_code |= set(range(token.start[0], token.end[0] + 1))
    n_lines = len(source.splitlines())
    n_docstring = len(docstring)
    n_code = len(with_code - docstring)
    n_comment = len(with_comment - with_code - docstring)
    return SourceFile(
        path=path,
        code=n_code,
        docstring=n_docstring,
        comment=n_comment,
        blank=n_lines - n_code - n_docstring - n_comment,
        functions=tuple(functions),
    )


def source_files(checkout: Path, folders: Sequence[str]) -> Iterator[SourceFile]:
    """Count every .py file below some folders; links to folders are not followed."""
    for folder in folders:
        for path in sorted((checkout / folder).rglob("*.py")):
            name = path.relative_to(checkout).as_posix()
            yield count(path.read_text(encoding="utf-8"), name)


def read_checkout(folder: Path) -> Checkout:
    """Count a checkout, all but its starts."""
    readme = folder / "README.md"
    return Checkout(
        folder=folder,
        product=tuple(source_files(folder, PRODUCT)),
        tests=tuple(source_files(folder, ("tests",))),
        benchmarks=tuple(source_files(folder, ("benchmarks",))),
        readme_lines=len(readme.read_text("utf-8").splitlines()) if readme.exists() else 0,
    )


def python_of(checkout: Path) -> str:
    """Return the checkout's own interpreter, or this one."""
    python = checkout / ".venv" / "bin" / "python"
    return str(python) if python.exists() else sys.executable


def measure_starts(checkouts: Sequence[Checkout], *, rounds: int) -> None:
    """Time every start in turns; the first round warms the disk and is not kept."""
    for number in range(rounds + 1):
        for checkout in checkouts:
            environment = os.environ | {"PYTHONPATH": str(checkout.folder.resolve())}
            for name, arguments in STARTS.items():
                start = time.perf_counter()
                subprocess.run(
                    [python_of(checkout.folder), *arguments],
                    check=True,
                    env=environment,
                    stdout=subprocess.DEVNULL,
                )
                if number:
                    checkout.starts.setdefault(name, []).append(time.perf_counter() - start)


def overview(checkout: Checkout) -> dict[str, str]:
    """Return what is counted of a checkout as a whole."""
    product, tests = checkout.product, checkout.tests
    functions = [function for file in product for function in file.functions]
    in_tests = [function for file in tests for function in file.functions]
    longest_file = max(product, key=lambda file: file.lines)
    longest_test = max(tests, key=lambda file: file.lines)
    longest = max(functions, key=lambda function: function.lines)
    test_functions = [f for f in in_tests if f.name.rsplit(":", 1)[1].startswith("test_")]
    rooms = {file.room for file in product}
    figures = {
        "modules": sum(file.is_module for file in product),
        "folders": len(rooms),
        "lines": sum(file.lines for file in product),
        "lines of code": sum(file.code for file in product),
        "lines of docstring": sum(file.docstring for file in product),
        "lines of comment": sum(file.comment for file in product),
        "blank lines": sum(file.blank for file in product),
        "functions": len(functions),
        "median function, lines": statistics.median(f.lines for f in functions),
        "longest function": f"{longest.lines} ({longest.name})",
        "longest file": f"{longest_file.lines} ({longest_file.path})",
        "files over 350 lines": sum(file.lines > 350 for file in product),
        "modules under 60 lines": sum(file.is_module and file.lines < 60 for file in product),
        "most modules in a folder": max(
            sum(file.is_module and file.room == room for file in product) for room in rooms
        ),
        "test files": sum(Path(file.path).name.startswith("test_") for file in tests),
        "test functions": len(test_functions),
        "lines of tests": sum(file.lines for file in tests),
        "longest test file": f"{longest_test.lines} ({longest_test.path})",
        "lines of benchmarks": sum(file.lines for file in checkout.benchmarks),
        "lines of README": checkout.readme_lines,
    }
    starts = {
        name: f"{statistics.median(seconds):.3f}" for name, seconds in checkout.starts.items()
    }
    return {name: str(value) for name, value in figures.items()} | starts


def rooms_table(checkouts: Sequence[Checkout]) -> list[list[str]]:
    """Return a row a room: modules, then lines of code, docstring, comment and blank lines."""
    kinds = ("modules", "code", "docstring", "comment", "blank")
    names = [checkout.folder.resolve().name for checkout in checkouts]
    rows = [["room", *(f"{kind}, {name}" for kind in kinds for name in names)]]
    files_of = [(*c.product, *c.tests, *c.benchmarks) for c in checkouts]
    rooms = sorted({file.room for files in files_of for file in files})
    for room in rooms:
        row = [room]
        for kind in kinds:
            for files in files_of:
                inside = [file for file in files if file.room == room]
                values = [
                    file.is_module if kind == "modules" else getattr(file, kind) for file in inside
                ]
                row.append(str(sum(values)) if inside else "")
        rows.append(row)
    return rows


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows as Markdown; the first is the head."""
    print("| " + " | ".join(rows[0]) + " |\n|---|" + "---:|" * (len(rows[0]) - 1))
    for row in rows[1:]:
        print("| " + " | ".join(row) + " |")
    print()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    root = Path(__file__).parents[1]
    parser.add_argument("checkouts", nargs="*", type=Path, default=[root], help="default: this one")
    parser.add_argument("--rounds", type=int, default=7, help="of starts (default 7); 0: none")
    args = parser.parse_args(argv)
    checkouts = [read_checkout(folder) for folder in args.checkouts]
    if args.rounds:
        measure_starts(checkouts, rounds=args.rounds)
    overviews = [overview(checkout) for checkout in checkouts]
    head = ["", *(str(checkout.folder) for checkout in checkouts)]
    print_table([head, *([name, *(o[name] for o in overviews)] for name in overviews[0])])
    print_table(rooms_table(checkouts))


if __name__ == "__main__":
    main()
