"""Workers that are refused before Ray is imported, and that only --workers imports it."""

import importlib.util
import socket

import pytest

from actcache import demo
from actcache.analysis import analyze
from actcache.build import build_store
from actcache.cli.main import main
from actcache.cluster import Workers, connect
from actcache.errors import ActcacheError
from tests.support.cluster import require_ray
from tests.support.processes import run_code


@pytest.fixture
def ray(monkeypatch):
    """Pretend that Ray is installed."""
    right = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: True if name == "ray" else right(name)
    )
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.mark.usefixtures("ray")
@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"n": 0}, "--workers is 0, expected 1 or more. Leave it out to work without Ray"),
        ({"n": -2}, "--workers is -2"),
        ({"n": 1, "gpus": -1}, "--gpus-per-worker is -1, expected 0 or more"),
        ({"n": 1, "address": "ray://head:10001"}, "expected HOST:PORT of the cluster's head"),
        ({"n": 1, "address": ""}, "--cluster is '', expected HOST:PORT of the cluster's head"),
        ({"n": 100_000}, "expected room for 100000 workers of 1 CPU. Pass a smaller"),
    ],
)
def test_impossible_workers_are_refused(settings, line):
    with pytest.raises(ActcacheError, match=line):
        Workers(**settings)


@pytest.mark.usefixtures("ray")
def test_workers_have_as_many_threads_as_omp_num_threads(monkeypatch):
    assert Workers(n=1, address="head:6379").threads == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert Workers(n=2, address="head:6379").threads == 3
    with pytest.raises(ActcacheError, match="100000 workers of 3 CPUs and 1 GPU"):
        Workers(n=100_000, gpus=1)
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert Workers(n=2, address="head:6379").threads == 1


def test_without_ray_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ActcacheError, match=r"pip install 'actcache\[cluster\]'"):
        Workers(n=1)


@pytest.mark.usefixtures("ray")
@pytest.mark.parametrize(
    "command",
    [["build", "no-such-rows.jsonl", "--model", "no-such-model"], ["analyze", "no-store"]],
)
def test_the_command_refuses_before_it_reads_rows(tmp_path, capsys, command):
    for flags, line in (
        (["--workers", "0"], "--workers is 0"),
        (["--cluster", "head:1"], "--cluster is given without --workers"),
        (["--gpus-per-worker", "1"], "--gpus-per-worker is given without --workers"),
    ):
        assert main([*command, "-o", str(tmp_path / "s"), *flags]) == 1
        error = capsys.readouterr().err
        assert line in error
        assert error.count("\n") == 1


@pytest.mark.usefixtures("ray")
def test_build_store_and_analyze_refuse_as_the_command_does(tmp_path):
    with pytest.raises(ActcacheError, match="--workers is 0"):
        build_store({"b": ["Hello."]}, tmp_path / "s", model="no-such-model", workers=0)
    with pytest.raises(ActcacheError, match="--workers is 0"):
        analyze("no-store", tmp_path / "out", workers=0)


@pytest.mark.slow
def test_a_cluster_that_does_not_answer_is_refused_at_once():
    require_ray()
    with socket.socket() as taken:  # a port on which nobody listens
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for wrong in (address, "head", "head:port", "head:123456"):
            with (
                pytest.raises(ActcacheError, match=f"'{wrong}' does not answer .* leave --cluster"),
                connect(Workers(n=1, address=wrong)),
            ):
                pass


@pytest.mark.slow
@pytest.mark.model
def test_without_workers_ray_is_not_imported(tmp_path):
    code = """
    import sys
    from actcache.cli.main import main
    assert main(["build", sys.argv[1], "--model", sys.argv[2], "-o", sys.argv[3], "--limit", "4"]) == 0
    assert main(["analyze", sys.argv[3], "--stages", "vectors"]) == 0
    assert "ray" not in sys.modules
    import actcache.build.workers, actcache.cluster.pool
    assert "ray" not in sys.modules
    """
    run_code(code, demo.row_files("tidy")[0], demo.model_path(), tmp_path / "s.zarr")
