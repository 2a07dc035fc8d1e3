"""GEN: what may be written into it, what a kill leaves, and what reads it back."""

import os

import pytest

from actcache.analysis.generation.folder import (
    CONFIGURATIONS,
    SUMMARY,
    TEXTS,
    Generations,
    TextLog,
    open_generations,
    remove_generations,
    writing,
)
from actcache.analysis.generation.texts import Configuration, GeneratedText
from actcache.errors import ActcacheError, FormatError, MismatchError, StoreExistsError
from tests.support.stores import build, example, file_bytes

SETTINGS = {"config": {"seed": 0, "method": ["caa"]}, "rows": "abc"}
ABOUT = Configuration(
    method="caa",
    behavior="tidy",
    selection="3",
    strength=0.5,
    unit="multiplier",
    identity=0.0,
    control=False,
    steering=[{"operator": "add"}],
)


def text(i, **changes):
    facts = {
        "n": 2,
        "ended": True,
        "empty": False,
        "n_bytes": 4,
        "repetition": None,
        "compression": 1.5,
        "script": 1.0,
        "well_formed": None,
        "refusal": False,
        "id": f"tidy/{i}",
        "behavior": "tidy",
        "split": "test",
        "configuration": "d1",
        "sample": 0,
        "text": 'a\u2028b\n"c"',
        "tokens": (3, 4),
        "nll_steered": 0.1,
        "nll_unsteered": None,
        "target": 1.25,
    }
    return GeneratedText(**{**facts, **changes})


def write(folder, texts, **how):
    with writing(folder, SETTINGS, {"d1": ABOUT}, **how) as log:
        log.append(texts)
        return list(log.texts)


def test_lines_and_configurations_are_read_back(tmp_path):
    texts = [text(i) for i in range(3)]
    write(tmp_path / "gen", texts)
    generations = Generations(tmp_path / "gen")

    assert generations.texts() == texts
    assert generations.configurations == {"d1": ABOUT}
    assert generations.settings == SETTINGS
    assert (tmp_path / "gen" / TEXTS).read_bytes().count(b"\n") == 3


@pytest.mark.parametrize("torn", [b"{", b'{"id": "tidy/3", "text": "\xc3', b'{"id": 1}'])
def test_a_torn_last_line_is_dropped_and_the_rest_is_kept(tmp_path, torn):
    texts = [text(i) for i in range(3)]
    write(tmp_path, texts)
    with (tmp_path / TEXTS).open("ab") as file:
        file.write(torn)

    assert write(tmp_path, [text(3)], resume=True) == [*texts, text(3)]
    assert Generations(tmp_path).texts() == [*texts, text(3)]


def test_every_cut_of_the_file_resumes_to_a_prefix(tmp_path):
    texts = [text(i) for i in range(3)]
    write(tmp_path, texts)
    raw = (tmp_path / TEXTS).read_bytes()
    for cut in range(0, len(raw), 7):
        (tmp_path / TEXTS).write_bytes(raw[:cut])
        log = TextLog(tmp_path / TEXTS)
        assert log.texts == texts[: len(log.texts)]
        log.append(texts[len(log.texts) :])
        log.close()
        assert (tmp_path / TEXTS).read_bytes() == raw


def test_a_damaged_line_in_the_middle_is_named(tmp_path):
    write(tmp_path, [text(0)])
    path = tmp_path / TEXTS
    path.write_bytes(b'{"id": "x"}\n' + path.read_bytes())

    with pytest.raises(FormatError, match=r"line 1 is no generated text.*--overwrite"):
        Generations(tmp_path).texts()


def test_a_line_is_durable_when_append_returns(tmp_path, monkeypatch):
    synced = []
    real = os.fsync

    def sync(file):
        synced.append(file)
        real(file)

    monkeypatch.setattr(os, "fsync", sync)
    with writing(tmp_path / "gen", SETTINGS, {"d1": ABOUT}) as log:
        before = len(synced)
        log.append([text(0)])
        assert len(synced) == before + 1
        assert Generations(tmp_path / "gen").texts() == [text(0)]


def test_texts_are_not_written_into_a_store(tmp_path):
    settings, values = example()
    store = build(tmp_path / "a.zarr", settings, values)
    before = file_bytes(store)
    with pytest.raises(ActcacheError, match=r"is inside the store .* outside of stores"):
        write(store / "gen", [text(0)])
    assert file_bytes(store) == before


def test_texts_of_other_settings_are_refused_by_field(tmp_path):
    write(tmp_path, [text(0)])
    other = {"config": {"seed": 1, "method": ["caa"]}, "rows": "abc"}
    for how in ({}, {"resume": True}):
        with (
            pytest.raises(MismatchError, match=r"'config.seed': stored 0, found 1.*--overwrite"),
            writing(tmp_path, other, {}, **how),
        ):
            pass
    with pytest.raises(StoreExistsError, match="--resume"):
        write(tmp_path, [])
    assert Generations(tmp_path).texts() == [text(0)]


def test_overwriting_removes_what_is_ours_alone(tmp_path):
    write(tmp_path, [text(0)])
    (tmp_path / SUMMARY).write_text("{}", encoding="utf-8")
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")

    assert write(tmp_path, [text(1)], overwrite=True) == [text(1)]
    assert not (tmp_path / SUMMARY).exists()
    remove_generations(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(StoreExistsError, match="empty folder"):
        write(tmp_path, [])


def test_one_writer_at_a_time(tmp_path):
    with writing(tmp_path / "gen", SETTINGS, {"d1": ABOUT}) as log:
        log.append([text(0)])
        with pytest.raises(ActcacheError, match="another process"):
            write(tmp_path / "gen", [], resume=True)
    write(tmp_path / "gen", [text(1)], resume=True)


@pytest.mark.parametrize("head", ["", "[]", '{"format": 9}', '{"format": 1, "settings": {}}'])
def test_damaged_configurations_are_refused(tmp_path, head):
    (tmp_path / CONFIGURATIONS).write_text(head, encoding="utf-8")

    with pytest.raises(FormatError, match="--overwrite"):
        write(tmp_path, [], resume=True)


def test_what_is_no_finished_run_is_refused(tmp_path):
    with pytest.raises(ActcacheError, match="actcache steer"):
        open_generations(tmp_path)
    write(tmp_path, [text(0)])
    with pytest.raises(ActcacheError, match="--resume"):
        open_generations(tmp_path)
