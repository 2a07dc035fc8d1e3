"""Kills builds of a store, and sweeps, and looks at what they left.

    python -m tests.crash.kill_test --kills 200           SIGKILL at random instants of builds
    python -m tests.crash.kill_test --sweep --kills 50    the same of sweeps of a tiny model
    python -m tests.crash.kill_test --steps               death before each sync, rename, unlink in turn

After each kill every row that is claimed is compared with the truth, and the build or sweep is
resumed. A finished store must equal an uninterrupted one byte for byte.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from actcache.errors import IncompleteStoreError, StoreExistsError, StoreNotFoundError
from actcache.store.schema import RowArray
from actcache.store.store import open_store, verify
from actcache.store.writing.contents import StoreContents
from actcache.store.writing.writer import Writer
from tests.support.stores import build, commit_next, example, file_bytes, scratch

ROOT = Path(__file__).parents[2]
CERTIFICATE = {"worst": 0.25}


@dataclass
class Report:
    """What a series of kills left."""

    kills: int = 0
    rows: int = 0
    """Rows that were claimed after a kill, and compared."""

    wrong: int = 0
    """Rows that were not as committed, problems found, finished stores that differ."""

    finished: int = 0
    committed_some: int = 0
    """Kills after which some rows counted, but not all."""


def plan(*, small=False):
    """Three arrays; large enough that kills fall into writes."""
    if small:
        settings, values = example(n=5, shard_rows=2)
        columns = ("id", "n_tokens", "prompt_tokens")
        settings["columns"] = {name: settings["columns"][name] for name in columns}
        return settings, values
    arrays = [
        RowArray("resid_post/prompt", 6, 64, "float16"),
        RowArray("resid_post/fork", 6, 64, "bfloat16"),
        RowArray("embed/prompt", 1, 64, "float32"),
    ]
    return example(n=1200, shard_rows=20, arrays=arrays)


def build_or_resume(planned, path, *, overwrite=False):
    """Begin or resume the build, and finish it."""
    settings, values = planned
    with Writer.resume(path, StoreContents(**settings), overwrite=overwrite) as writer:
        while writer.committed < writer.n:
            commit_next(writer, values)
        writer.finish(CERTIFICATE)


def wrong_rows(path, values):
    """Rows that are claimed, and those of them that are not as they were committed."""
    try:
        store = open_store(path, partial=True, check=True)
    except (IncompleteStoreError, StoreNotFoundError):
        # Before record 0 there is no store; then nothing may be claimed.
        assert not any(path.parent.glob("*.partial/commits/c.0.0"))
        return 0, 0
    wrong = len(verify(path, partial=True))
    for name, truth in values.items():
        array = store.array(name)
        stored = (array.bits if array.dtype == "bfloat16" else array)[:]
        wrong += int((stored != truth[: store.n]).any(axis=(1, 2)).sum())
    if "n_tokens" in store.columns:
        np.testing.assert_array_equal(store["n_tokens"], np.arange(store.n) * 3)
    return store.n, wrong


def look(path, report, values, whole):
    """Check what a kill left, as a process of its own would; forget the store if it is finished."""
    rows, wrong = wrong_rows(path, values)
    report.kills += 1
    report.rows += rows
    report.wrong += wrong
    report.committed_some += 0 < rows < len(next(iter(values.values())))
    if path.exists():
        report.finished += 1
        report.wrong += file_bytes(path) != whole
        report.wrong += [p.name for p in path.parent.iterdir()] != [path.name]
        shutil.rmtree(path)
    else:
        try:
            open_store(path)
        except (IncompleteStoreError, StoreNotFoundError):
            pass
        else:
            report.wrong += 1


def random_kills(folder, *, kills, seed):
    """SIGKILL a building process at random instants."""
    rng = random.Random(seed)
    settings, values = plan()
    whole = file_bytes(build(folder / "whole.zarr", settings, values, certificate=CERTIFICATE))
    path = folder / "killed" / "a.zarr"
    path.parent.mkdir()
    report = Report()
    code = "import sys; from pathlib import Path; from tests.crash.kill_test import build_or_resume, plan\n"
    code += "planned = plan(); print(flush=True); build_or_resume(planned, Path(sys.argv[1]))"
    start = time.monotonic()
    build_or_resume((settings, values), path)
    longest = time.monotonic() - start
    shutil.rmtree(path)
    while report.kills < kills:
        with subprocess.Popen(
            [sys.executable, "-c", code, str(path)], cwd=ROOT, stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()  # it has imported what it needs
            time.sleep(rng.random() * longest)
            process.send_signal(signal.SIGKILL)
        look(path, report, values, whole)
    return report


def sweep_kills(folder, *, kills, seed):
    """SIGKILL a sweeping process at random instants.

    It is a fork of this one, which has loaded torch and the model: that takes longer than a sweep.
    """
    import torch

    torch.set_num_threads(1)  # threads do not outlive a fork
    rng = random.Random(seed)
    sweep = _tiny_sweep(folder)
    whole = sweep(folder / "whole.zarr")
    values = {name: whole.array(name)[:] for name in whole.arrays}
    finished = file_bytes(folder / "whole.zarr")
    path = folder / "killed" / "sweep.zarr"
    path.parent.mkdir()
    start = time.monotonic()
    sweep(path)
    longest = time.monotonic() - start
    shutil.rmtree(path)
    report = Report()
    while report.kills < kills:
        child = os.fork()
        if child == 0:
            try:
                sweep(path)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        time.sleep(rng.random() * longest)
        os.kill(child, signal.SIGKILL)
        report.wrong += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) not in (0, -9)
        look(path, report, values, finished)
    if not path.exists():  # what the last kill left is finished as well
        sweep(path)
        report.finished += 1
        report.wrong += file_bytes(path) != finished
    return report


def _tiny_sweep(folder):
    """Runs one sweep of two direction sets in shards of three rows; resumes what it finds."""
    from actcache.analysis.sweep import run as module
    from actcache.analysis.sweep.row_directions import shared_directions
    from actcache.build.config import BuildConfig
    from actcache.build.plan import plan_build
    from actcache.build.run import run_build
    from actcache.data.formats import read_samples
    from actcache.engine.model import load_model
    from tests.support.tiny import save

    answers = (" (A)", " (B), yes")
    rows = [
        {
            "prompt": f"{i}?" * (1 + i % 5),
            "positive": answers[i % 2],
            "negative": answers[1 - i % 2],
        }
        for i in range(30)
    ]
    data = folder / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    config = BuildConfig(model=save(folder / "model"))
    store = run_build(plan_build(read_samples([data]), config), folder / "s.zarr")
    model = load_model(config.model)
    model.digest  # noqa: B018  # computed once, before any fork
    vectors = np.random.default_rng(0).normal(size=(3, 4, 32)).astype(np.float32)
    sets = {
        "shared": shared_directions(vectors[:1], np.zeros(store.n, np.int64)),
        "by_third": shared_directions(vectors, np.arange(store.n) % 3),
    }

    def sweep(path):
        return module.run_sweep(
            store, sets, multipliers=(-1.0, 0.0, 0.5, 1.0), out=path, model=model,
            score="logprob", batch_tokens=600, shard_rows=3,
        ).store  # fmt: skip

    return sweep


def step_kills(folder, *, overwrite):
    """Die before each call that changes what is durable, one build for each of them, then go on.

    With `overwrite` an older store lies in the place of the new one. Going on is resuming alone,
    which must not need to hear again that the older store is to be replaced, nor leave it aside.
    """
    settings, values = plan(small=True)
    whole = file_bytes(build(folder / "whole.zarr", settings, values, certificate=CERTIFICATE))
    older_settings, older_values = example(n=3, shard_rows=2, seed=1)
    older = build(folder / "older.zarr", older_settings, older_values)
    path = folder / "killed" / "a.zarr"
    report, step, died = Report(), 0, True
    while died:
        step += 1
        shutil.rmtree(path.parent, ignore_errors=True)
        path.parent.mkdir()
        if overwrite:
            shutil.copytree(older, path)
        died = _die_at(step, path, overwrite=overwrite)
        report.kills += died
        _check_step(path, report, values, whole, older if overwrite else None)
        begun = any(not name.endswith(".tmp") for name in file_bytes(Path(f"{path}.partial")))
        if died and begun:  # once more, within the resumed build
            report.kills += _die_at(1 + step % 11, path, overwrite=False)
            _check_step(path, report, values, whole, older if overwrite else None)
        try:
            build_or_resume(plan(small=True), path)
        except StoreExistsError:  # it is finished, or was not even begun
            if not _is_new(path, whole):
                report.wrong += begun or file_bytes(path) != file_bytes(older)
                build_or_resume(plan(small=True), path, overwrite=True)
        report.finished += 1
        if not _is_new(path, whole) or [p.name for p in path.parent.iterdir()] != [path.name]:
            report.wrong += 1
            names = [p.name for p in path.parent.iterdir()]
            sys.stderr.write(f"step {step}: the finished store differs, among {names}\n")
    return report


def _is_new(path, whole):
    return path.exists() and file_bytes(path) == whole


def _check_step(path, report, values, whole, older):
    if path.exists():  # never anything between an old store and a finished one
        files = file_bytes(path)
        report.wrong += files != whole and (older is None or files != file_bytes(older))
    partial = Path(f"{path}.partial")
    if partial.exists():
        rows, wrong = wrong_rows(partial, values)
        report.rows += rows
        report.wrong += wrong
        report.committed_some += 0 < rows < len(next(iter(values.values())))


def _die_at(step, path, *, overwrite):
    """Build in a fork that dies before its call number `step`; say whether it did."""
    child = os.fork()
    if child == 0:
        left = step

        def dying(call):
            def die(*args, **kwargs):
                nonlocal left
                left -= 1
                if left == 0:
                    os._exit(9)
                return call(*args, **kwargs)

            return die

        for name in ("fsync", "rename", "replace", "unlink", "mkdir", "rmdir"):
            setattr(os, name, dying(getattr(os, name)))
        try:
            build_or_resume(plan(small=True), path, overwrite=overwrite)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 9)
    return status == 9


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--steps", action="store_true")
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--folder", type=Path, help="on the disk that is to be tried")
    args = parser.parse_args()
    with scratch() as memory:
        folder = Path(memory) if args.folder is None else args.folder / f"kills-{os.getpid()}"
        folder.mkdir(exist_ok=True)
        if args.steps:
            reports = []
            for overwrite in (False, True):
                inner = folder / str(overwrite)
                inner.mkdir()
                reports.append(step_kills(inner, overwrite=overwrite))
        elif args.sweep:
            reports = [sweep_kills(folder, kills=args.kills, seed=args.seed)]
        else:
            reports = [random_kills(folder, kills=args.kills, seed=args.seed)]
        for report in reports:
            sys.stdout.write(f"{report}\n")
        shutil.rmtree(folder, ignore_errors=True)
    return 1 if any(report.wrong for report in reports) else 0


if __name__ == "__main__":
    sys.exit(main())
