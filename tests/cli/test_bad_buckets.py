"""Builds into a bucket that cannot work end with one line, before rows are read or a model loaded."""

import logging
import shutil
import sys

import pytest

from actcache.store.layout import read_layout
from actcache.store.storage.s3 import S3Storage
from actcache.store.writing.partial import unsealed
from tests.cli.commands import build, refused
from tests.support.answer_proxy import AnswerProxy
from tests.support.seaweedfs import BUCKET, KEYS, OPEN_BUCKET, READER
from tests.support.stores import file_bytes

pytestmark = pytest.mark.slow

UNKNOWN = {"AWS_ACCESS_KEY_ID": "unknownaccesskey", "AWS_SECRET_ACCESS_KEY": "unknownsecret"}
WRONG_SECRET = {"AWS_SECRET_ACCESS_KEY": "thewrongsecretoftests"}
NOWHERE = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
NOTHING = ["build", "no-such-rows.jsonl", "--model", "no-such-model"]
"""Rows and model do not exist: a command that looks at them first would say so."""

WITH_AND_WITHOUT_WORKERS = pytest.mark.parametrize("more", [[], ["--workers", "1"]])


@pytest.fixture
def line_of(capfd, caplog):
    """The one line with which a command is refused; no key is in it, nor in what is logged."""
    caplog.set_level(logging.DEBUG)
    keys = {key for keys in (KEYS, READER, UNKNOWN, WRONG_SECRET) for key in keys.values()}

    def line_of(argv):
        line = refused(argv, capfd)
        assert not [key for key in keys if key in line + caplog.text]
        return line

    return line_of


def require_installed(more):
    if more:
        pytest.importorskip("ray", reason="pip install 'actcache[cluster]'")


@WITH_AND_WITHOUT_WORKERS
@pytest.mark.parametrize(
    ("to", "change", "problem", "remedy"),
    [
        ("s3://nobody/a.zarr", {}, "there is no bucket 'nobody'", "Create it, or"),
        (f"s3://{BUCKET}/a.zarr", UNKNOWN, "does not know the access key", "Set AWS_ACCESS_KEY"),
        (f"s3://{BUCKET}/a.zarr", WRONG_SECRET, "signature", "Correct AWS_SECRET_ACCESS_KEY"),
        (f"s3://{BUCKET}/a.zarr", READER, "not allow these keys to write", "to other keys"),
        (f"s3://{BUCKET}/a.zarr", NOWHERE, "did not answer for", "correct AWS_ENDPOINT_URL"),
        (f"s3://{BUCKET}", {}, "names no store", "s3://BUCKET/STORE.zarr"),
    ],
)
def test_a_bucket_that_cannot_be_written_is_refused(
    bucket, line_of, monkeypatch, more, to, change, problem, remedy
):
    require_installed(more)
    for name, value in change.items():
        monkeypatch.setenv(name, value)
    line = line_of([*NOTHING, "-o", to, *more])
    assert f"'{to}'" in line
    assert problem in line
    assert remedy in line


@WITH_AND_WITHOUT_WORKERS
def test_an_endpoint_that_ignores_if_none_match_is_refused(
    bucket, seaweedfs, line_of, monkeypatch, more
):
    require_installed(more)
    for name in KEYS:  # the header is signed, where there are keys
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    with AnswerProxy(seaweedfs.ports["s3"], without="if-none-match") as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        line = line_of([*NOTHING, "-o", f"s3://{OPEN_BUCKET}/a.zarr", *more])
    assert "a second write of one name replaces the first" in line
    assert "build into a folder" in line


@WITH_AND_WITHOUT_WORKERS
@pytest.mark.model
def test_a_store_of_other_settings_is_refused_before_the_model_is_loaded(
    bucket, folder, tmp_path, line_of, more
):
    require_installed(more)
    shutil.copytree(folder / "model", tmp_path / "model")
    shutil.copy(folder / "pairs.jsonl", tmp_path)
    assert build(tmp_path, tmp_path / "a.zarr") == 0
    weights = tmp_path / "model/model.safetensors"
    weights.rename(tmp_path / "weights")  # whoever loads the model says that they are missing
    words = ["build", tmp_path / "pairs.jsonl", "--model", tmp_path / "model", *more]
    storage = S3Storage(f"{bucket}/a.zarr")
    storage.write_small(file_bytes(tmp_path / "a.zarr"))

    words += ["-o", storage.location]
    assert "is not empty" in line_of(words)
    assert "holds a finished store" in line_of([*words, "--resume"])
    unsealed(read_layout(storage))  # as if it had been interrupted at the very end
    assert "is not empty" in line_of(words)
    line = line_of([*words, "--resume", "--seed", "7"])
    assert "config.seed" in line
    assert "or begin anew with --overwrite" in line
    assert storage.sibling(".probe").sizes() == {}


def test_without_obstore_one_line_says_what_to_install(line_of, monkeypatch):
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    line = line_of([*NOTHING, "-o", f"s3://{BUCKET}/a.zarr"])
    assert "pip install 'actcache[s3]'" in line
