"""The map of the project as a table: which folder may import which, and where torch may come in.

The check reads every folder, into subfolders, functions and `TYPE_CHECKING`. CONTRIBUTING says why
the table is as it is.
"""

import ast
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.processes import ROOT


class Rule(NamedTuple):
    """What one folder (or top-level module) may import of ours; its own folder always."""

    allowed: tuple[str, ...]
    """Names of rooms; a room covers its subfolders."""

    heavy: tuple[str, ...] = ()
    """Modules of the room that may import torch, transformers, zarr or h5py at import time."""


GROUND = (
    *("errors", "conventions", "settings", "identity", "names", "hub"),
    *("progress", "lazy", "notebook"),
)
STORE = ("store", *GROUND)
PREDICT_SHARED = ("analysis.predict.adamw_stack", "analysis.predict.predictor_file")
EVERYTHING = ("*",)

RULES = {
    "errors": Rule(()),
    "lazy": Rule(()),
    "conventions": Rule(("errors",)),
    "settings": Rule(("errors", "names")),
    "identity": Rule(("errors",)),
    "notebook": Rule(()),
    "names": Rule(()),
    "hub": Rule(()),
    "progress": Rule(("errors", "notebook")),
    "data": Rule(GROUND),
    "prompts": Rule(("data", *GROUND)),
    "store": Rule(
        ("store.storage", "store.writing", "store.copies", *GROUND), heavy=("torch_dataset",)
    ),
    "store.storage": Rule(GROUND),
    "store.writing": Rule(STORE),
    "store.copies": Rule(("data", *STORE)),
    "engine": Rule(("prompts", *GROUND), heavy=EVERYTHING),
    "cluster": Rule(GROUND),
    "build.config": Rule(GROUND),
    "build": Rule(
        ("build.config", "cluster", "data", "prompts", "engine", *STORE),
        heavy=("run", "runs", "workers", "certify", "replay", "forecast"),
    ),
    "encoders": Rule(("engine", *STORE), heavy=("sentence",)),
    "steering": Rule(
        ("prompts", "engine", *STORE),
        heavy=("operators", "hooks", "rows", "prefill", "decoding", "loop", "scoring"),
    ),
    "exchange": Rule(("data", "steering", *STORE)),
    "demo": Rule(GROUND),
    "": Rule(
        (
            *("data", "prompts", "engine", "build", "encoders", "exchange", "demo", "cli"),
            *("steering", *STORE),
        )
    ),
    "analysis.stats": Rule(GROUND),
    "analysis.directions": Rule(("analysis.directions.fitting", "analysis.stats", *STORE)),
    "analysis.directions.fitting": Rule(
        ("analysis.directions", "analysis.stats", *STORE), heavy=("rfm", "spectrum")
    ),
    "analysis.concepts": Rule(
        (
            *("analysis.concepts.summary", "analysis.directions.fitting"),
            *("analysis.directions", "analysis.stats"),
            *(
                "analysis.config",
                "analysis.names",
                "analysis.files",
                "build",
                "data",
                "engine",
                *STORE,
            ),
        ),
    ),
    "analysis.concepts.summary": Rule(("analysis.files", "analysis.stats", *GROUND)),
    "analysis.sweep": Rule(
        (
            *("analysis.directions", "analysis.stats", "analysis.config"),
            *("analysis.directions.fitting", "steering.files"),
            *("analysis.names", "build", "data", "engine", "prompts", *STORE),
        ),
        heavy=("run", "grid", "forecast"),
    ),
    "analysis.predict": Rule(
        (
            *("analysis.predict.w2s", "analysis.predict.l2s"),
            *("analysis.sweep", "analysis.directions", "analysis.stats", "analysis.files"),
            *(
                "analysis.config",
                "analysis.names",
                "encoders",
                "build",
                "engine",
                *STORE,
            ),
        ),
        heavy=("stage", "learned_vectors", "unseen_vectors", "adamw_stack"),
    ),
    "analysis.predict.w2s": Rule(
        (*PREDICT_SHARED, "analysis.sweep", "analysis.stats", "analysis.config", *GROUND),
        heavy=("train_layers", "mlp_stack", "cross_validate"),
    ),
    "analysis.predict.l2s": Rule(
        (*PREDICT_SHARED, "analysis.stats", "analysis.config", *STORE),
        heavy=("train_vectors", "tanh_stack"),
    ),
    "analysis.generation": Rule(
        (
            *("analysis.predict", "analysis.sweep", "analysis.directions", "analysis.stats"),
            *("analysis.config", "analysis.names", "analysis.files", "analysis.results"),
            *("analysis.summary", "analysis.report", "analysis.generation.summary"),
            *("encoders", "build", "engine", "prompts", "steering", "data"),
            *STORE,
        ),
        heavy=("run.conversation", "run.finish"),
    ),
    "analysis.names": Rule(()),
    "analysis.config": Rule(("analysis.names", "encoders", *GROUND)),
    "analysis.files": Rule(STORE),
    "analysis.results": Rule(
        (
            *("analysis.report", "analysis.summary", "analysis.files", "analysis.names"),
            *("analysis.predict", "analysis.sweep", "analysis.directions", "analysis.stats"),
            *("analysis.results_folder", *STORE),
        )
    ),
    "analysis.results_folder": Rule(
        (
            *("analysis.summary", "analysis.files", "analysis.names", "analysis.predict"),
            *("analysis.sweep", "build", *STORE),
        )
    ),
    "analysis.summary": Rule(
        (
            *("analysis.predict", "analysis.sweep", "analysis.directions", "analysis.stats"),
            *("analysis.config", "analysis.names", "analysis.files", *GROUND),
        )
    ),
    "analysis.generation.summary": Rule(("analysis.stats", "analysis.files", *GROUND)),
    "analysis.report": Rule(
        (
            "analysis.report.html",
            *("analysis.summary", "analysis.generation.summary", "analysis.concepts.summary"),
            *("analysis.names", "analysis.stats", *GROUND),
        )
    ),
    "analysis.report.html": Rule(
        (
            *("analysis.report", "analysis.summary", "analysis.generation.summary"),
            *(
                "analysis.concepts.summary",
                "analysis.names",
                "analysis.files",
                "analysis.stats",
                *STORE,
            ),
        )
    ),
    "analysis": Rule(("analysis", "build", "cluster", "data", "encoders", "engine", *STORE)),
    "cli": Rule(EVERYTHING),
}
"""By the dotted name after `actcache.`; the empty name is `actcache` itself. The longest name that
a module's begins with is its room."""

HEAVY = ("torch", "transformers", "transformer_lens", "zarr", "h5py", "matplotlib", "sklearn")
LARGEST_FOLDER, LONGEST_FILE = 14, 380


class Import(NamedTuple):
    """One import statement of one module."""

    module: str
    line: int
    target: str
    at_import: bool
    """Whether it runs when the module is imported."""


def sources(root: Path) -> dict[str, Path]:
    """Every module of the package by dotted name, without the leading `actcache.`."""
    modules = {}
    for folder, name in (("actcache", ""), ("analysis", "analysis"), ("cli", "cli")):
        for path in sorted((root / folder).rglob("*.py")):
            parts = path.relative_to(root / folder).with_suffix("").parts
            if folder == "actcache" and parts[0] in ("analysis", "cli"):
                continue  # the links
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            modules[".".join([*([name] if name else []), *parts])] = path
    return modules


def imports(module: str, path: Path, modules: dict[str, Path]) -> tuple[Import, ...]:
    """Imports of one module: those of ours by the module that they load, others by top level."""
    return _imports(module, path.read_text(encoding="utf-8"), frozenset(modules))


@cache  # copies of the sources differ in a file or two
def _imports(module: str, text: str, modules: frozenset[str]) -> tuple[Import, ...]:
    return tuple(_read_imports(module, text, modules))


def _read_imports(module: str, text: str, modules: frozenset[str]) -> Iterator[Import]:
    tree = ast.parse(text)
    later = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            names = [
                full
                if (full := f"{base}.{alias.name}").removeprefix("actcache.") in modules
                else base
                for alias in node.names
            ]
        else:
            continue
        for name in dict.fromkeys(names):
            if name == "actcache" or name.startswith("actcache."):
                target = name.removeprefix("actcache").removeprefix(".")
                yield Import(module, node.lineno, "actcache." + target, id(node) not in later)
            else:
                yield Import(module, node.lineno, name, id(node) not in later)


def room_of(module: str) -> str:
    """The name of the rule that holds for a module."""
    fitting = [
        room for room in RULES if module == room or module.startswith(f"{room}.") or not room
    ]
    return max(fitting, key=len)


def covers(room: str, module: str) -> bool:
    return room == "*" or module == room or module.startswith(f"{room}.")


def violations(root: Path) -> list[str]:
    """A line for each import that the table forbids: folder, what is imported, file and line."""
    modules = sources(root)
    lines = []
    for module, path in modules.items():
        room = room_of(module)
        rule = RULES[room]
        for imported in imports(module, path, modules):
            where = f"{path.relative_to(root)}:{imported.line}"
            if imported.target.startswith("actcache"):
                target = imported.target.removeprefix("actcache").removeprefix(".")
                within = target == room or (room and room_of(target) == room)
                if not target and room not in ("", "cli"):  # the front, for what stands behind it
                    lines.append(f"{room or 'actcache'} may not import actcache itself ({where})")
                elif target and not within and not any(covers(a, target) for a in rule.allowed):
                    lines.append(f"{room or 'actcache'} may not import {imported.target} ({where})")
            elif imported.at_import and imported.target.split(".")[0] in HEAVY:
                name = module.removeprefix(room).removeprefix(".")
                if rule.heavy != EVERYTHING and name not in rule.heavy:
                    package = imported.target.split(".")[0]
                    lines.append(
                        f"{room or 'actcache'} may not import {package} at import ({where})"
                    )
    return lines


def circles(root: Path) -> list[str]:
    """Groups of modules that import one another, wherever the import stands."""
    modules = sources(root)
    graph: dict[str, set[str]] = {}
    for module, path in modules.items():
        targets = (i.target for i in imports(module, path, modules) if i.target != "actcache")
        imported = {t.removeprefix("actcache.") for t in targets if t.startswith("actcache.")}
        graph[module] = (imported & modules.keys()) - {module}
    waiting = set(graph)
    while True:  # take away what imports nothing that is left; circles stay
        free = {m for m in waiting if not graph[m] & waiting}
        if not free:
            break
        waiting -= free
    while True:  # and what nothing left imports
        free = {m for m in waiting if not any(m in graph[other] for other in waiting)}
        if not free:
            return sorted(waiting)
        waiting -= free


def copy_of_the_sources(folder: Path) -> Path:
    for name in ("actcache", "analysis", "cli"):
        for path in (ROOT / name).rglob("*.py"):
            target = folder / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    return folder


def test_every_import_is_one_that_the_table_allows():
    assert violations(ROOT) == []


def test_no_modules_import_one_another_in_a_circle():
    assert circles(ROOT) == []


PLANTED = [
    ("actcache/errors.py", "import actcache.conventions", "errors", "actcache.conventions"),
    ("actcache/conventions.py", "import numpy, torch", "conventions", "torch"),
    ("actcache/data/samples.py", "from actcache.prompts import render", "data", "actcache.prompts"),
    ("actcache/prompts/checks.py", "import actcache.engine.model", "prompts", "actcache.engine"),
    ("actcache/store/schema.py", "import zarr", "store", "zarr"),
    ("actcache/store/storage/local.py", "import h5py", "store.storage", "h5py"),
    ("actcache/store/copies/merge.py", "import actcache.build.run", "store.copies", "actcache.build"),
    ("actcache/engine/model.py", "from actcache.store import store", "engine", "actcache.store"),
    ("actcache/build/plan.py", "import actcache.analysis", "build", "actcache.analysis"),
    ("actcache/encoders/cached.py", "def f():\n    import actcache.cli", "encoders", "actcache.cli"),
    ("actcache/exchange/npz.py", "import actcache.engine.model", "exchange", "actcache.engine"),
    ("analysis/stats/moments.py", "import actcache.analysis.sweep", "analysis.stats", "actcache.analysis.sweep"),
    ("analysis/sweep/steerability.py", "import torch", "analysis.sweep", "torch"),
    ("analysis/predict/w2s/folds.py", "import actcache.analysis.report.tables", "analysis.predict.w2s", "actcache.analysis.report"),
    ("analysis/report/tables.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from actcache.store import Store", "analysis.report", "actcache.store"),
    ("analysis/report/plots.py", "import actcache.cli.main", "analysis.report", "actcache.cli"),
    ("analysis/config.py", "import actcache.store", "analysis.config", "actcache.store"),
    ("actcache/build/new/deep/module.py", "import actcache.cli.main", "build", "actcache.cli"),
]  # fmt: skip


@pytest.mark.parametrize(("file", "code", "room", "target"), PLANTED, ids=lambda value: None)
def test_a_planted_import_is_named_with_folder_and_line(tmp_path, file, code, room, target):
    root = copy_of_the_sources(tmp_path)
    path = root / file
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    path.write_text("\n".join([*lines, code]) + "\n", encoding="utf-8")
    line = len(lines) + code.count("\n") + 1

    [message] = set(violations(root)) - set(violations(ROOT))

    assert message.startswith(f"{room} may not import {target}")
    assert f"({file}:{line})" in message


def test_every_rule_of_the_table_is_broken_once(tmp_path):
    """One forbidden import in a module of each room: the check names that room for each."""
    root = copy_of_the_sources(tmp_path)
    rooms = {room: rule for room, rule in RULES.items() if rule.allowed != EVERYTHING}
    for room in rooms:
        module = next(path for name, path in sources(root).items() if room_of(name) == room)
        target = "actcache.cli.main" if room else "actcache.analysis"
        text = module.read_text(encoding="utf-8")
        module.write_text(f"{text}\nimport {target}\n", encoding="utf-8")

    lines = violations(root)

    for room in rooms:
        assert any(line.startswith(f"{room or 'actcache'} may not import") for line in lines), room


@pytest.mark.parametrize(
    "code", ["import {0}", "def f():\n    import {0}", "if TYPE_CHECKING:\n    import {0}"]
)
def test_a_planted_circle_is_found(tmp_path, code):
    root = copy_of_the_sources(tmp_path)
    first, second = root / "actcache/data/one.py", root / "actcache/data/two.py"
    first.write_text(code.format("actcache.data.two"), encoding="utf-8")
    second.write_text("from actcache.data import one", encoding="utf-8")

    assert {"data.one", "data.two"} <= set(circles(root))


def test_no_folder_is_a_corridor_and_no_file_is_long():
    modules = sources(ROOT)
    folders: dict[Path, int] = {}
    for path in modules.values():
        if path.name != "__init__.py":
            folders[path.parent] = folders.get(path.parent, 0) + 1
    long = [p for p in modules.values() if len(p.read_text("utf-8").splitlines()) > LONGEST_FILE]

    assert {str(f): n for f, n in folders.items() if n > LARGEST_FOLDER} == {}
    assert long == []
