"""Measure variants in turns, so that a noisy machine slows all of them alike; report ratios."""

import argparse
import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table


def in_turns(
    variants: Mapping[str, Callable[[], object]],
    *,
    repeats: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Return seconds of each variant by `clock`; each round runs all variants one after another.

    One more round comes first and is discarded.
    """
    took: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(repeats + 1):
        for name, work in variants.items():
            _wait()
            start = clock()
            work()
            _wait()
            if turn:
                took[name].append(clock() - start)
    return took


def ratio(took: Mapping[str, list[float]], name: str, other: str) -> float:
    """Return the median over rounds of `ours / other`, both of the same round."""
    return statistics.median(a / b for a, b in zip(took[name], took[other], strict=True))


def report(title: str, figures: Mapping[str, Any], *, about: Mapping[str, Any]) -> None:
    """Print a table for people, then one line of JSON for programs."""
    table = Table(title=title, show_header=False)
    for name, value in figures.items():
        table.add_row(name, f"{value:.4g}" if isinstance(value, float) else str(value))
    Console().print(table)
    document = {"benchmark": title, **figures, "about": {**about, **machine()}}
    print(json.dumps(document))


def machine() -> dict[str, Any]:
    """Describe commit and hardware, for RESULTS.md."""
    git = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    cpu = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "commit": commit,
        "cpu": cpu,
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "torch": torch.__version__,
    }


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """Make a parser with the flags that every benchmark takes."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default 1)")
    return parser


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
