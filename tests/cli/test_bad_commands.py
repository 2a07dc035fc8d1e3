"""Each bad command line ends with one line that names what is wrong and what to do; no file changes."""

import json
import shlex
import shutil
import socket
from pathlib import Path

import pytest

from actcache.cli.main import main
from tests.cli.bad_commands import CASES
from tests.cli.commands import build
from tests.support.rows import GOOD, LABEL


@pytest.fixture(scope="module")
def places(folder, built, tmp_path_factory):
    """Paths that the table names: valid inputs, and invalid ones."""
    w = tmp_path_factory.mktemp("w")
    datasets = pytest.importorskip("datasets", reason="the package datasets is not installed")
    datasets.DatasetDict(train=datasets.Dataset.from_list([GOOD])).save_to_disk(w / "saved")
    assert build(folder, folder / "labelled.zarr", data="labels") == 0
    assert build(folder, folder / "one_label.zarr", "--limit", "1", data="labels") == 0
    topics = ["--map", "topic=label"]
    assert build(folder, folder / "prompts.zarr", *topics, data="labels") == 0
    results = ["analyze", built, "-o", folder / "results", "--draws", "10"]
    assert main([str(word) for word in [*results, "--stages", "vectors,sweep"]]) == 0
    for name, content in {
        "text.txt": b"x",
        "bytes.jinja": b"\xff",
        "silent.jinja": b"{{ '' }}",
        "list.json": b"[1]",
        "empty.jsonl": b"",
        "cut.jsonl": b'{"prompt":',
        "object.json": b'{"a": 1}',
        "keys.csv": b"a,b\n1,2\n",
        "text.h5": b"hi",
        "text.parquet": b"x",
        "text.jsonl.gz": b"x",
        "ragged.tsv": b"prompt\tlabel\na\n",
        "other.toml": b"[analyze]\nsede = 3\n",
        "broken.h5": b"\x89HDF\r\n\x1a\n" + bytes(50),
        "full/file": b"x",
        "damaged/summary.json": b"[1]",
        "folder/.keep": b"",
        **{
            f"{name}.jsonl": json.dumps(row).encode()
            for name, row in {
                "up": {**GOOD, "behavior": "../up"},
                "at": {**GOOD, "behavior": "a@b"},
                "escape": {**GOOD, "behavior": "a\x1b[31m"},
                "line": {**GOOD, "id": "a\nb"},
                "long": {**GOOD, "behavior": "ü" * 150},
                "label": {**LABEL, "label": ".."},
                "half": {"prompt": "a", "positive": "b"},
                "turns": {"messages": [{"role": "bot", "content": "a"}]},
                "history": {"messages": [{"role": "user", "content": word} for word in "ab"]},
            }.items()
        },
    }.items():
        (w / name).parent.mkdir(exist_ok=True)
        (w / name).write_bytes(content)
    with pytest.MonkeyPatch.context() as patched, socket.socket(socket.AF_UNIX) as made:
        patched.chdir(w)  # the name of a socket must be short
        made.bind("socket.jsonl")
    for name in ("cut", "garbled"):
        shutil.copytree(folder / "model", w / name)
    (w / "cut" / "model.safetensors").write_bytes(b"\x10")
    (w / "garbled" / "tokenizer.json").write_text("{", encoding="utf-8")
    return {
        **{name: folder / f"{name}.jsonl" for name in ("pairs", "labels")},
        "model": folder / "model",
        "store": built,
        **{name: folder / f"{name}.zarr" for name in ("labelled", "one_label", "prompts")},
        "saved": w / "saved",
        "results": folder / "results",
        "sweep": folder / "results" / "sweep.zarr",
        "w": w,
        "new": w / "new.zarr",
        "out": w / "out",
        "cut": w / "cut",
        "garbled": w / "garbled",
        "root": folder,
    }


def files(places):
    return {
        str(path): path.lstat().st_mtime_ns
        for root in (places["w"], places["root"])
        for path in Path(root).rglob("*")
    }


def test_the_table_is_long():
    assert len({line for line, *_ in CASES}) == len(CASES) >= 160


@pytest.mark.model
@pytest.mark.parametrize(("line", "named", "remedy"), CASES, ids=[line for line, *_ in CASES])
def test_a_bad_command_prints_one_line_and_changes_nothing(
    places, monkeypatch, capsys, line, named, remedy
):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(places["w"] / "cache"))
    before = files(places)

    code = main(shlex.split(line.format(**places)))

    shown = capsys.readouterr()
    *usage, message = shown.err.splitlines()
    assert code == (2 if usage or message.startswith("usage") else 1), shown.err
    assert code == 2 or message.startswith("actcache: "), shown.err
    assert named.format(**places) in message, message
    assert remedy in message, message
    assert "mistake in actcache" not in message
    assert not message.endswith("..")
    assert not shown.out
    assert files(places) == before
