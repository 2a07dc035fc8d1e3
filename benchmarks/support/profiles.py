"""Where the time of one run goes: a Chrome trace on disk, and a table of the slowest operators.

This is what `--profile DIR` of a benchmark does. A profiled run is slower than a measured one, so
it is a separate run, and only shares of time are taken from it.
"""

import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity
from torch.profiler import profile as profiler

KINDS: Mapping[str, tuple[str, ...]] = {
    "attention": ("attention", "softmax", "bmm", "baddbmm"),
    "matrix products": ("addmm", "mm", "linear", "matmul", "einsum"),
    "norms and activations": ("norm", "gelu", "silu", "tanh", "relu", "logsumexp", "rsqrt", "exp"),
    "copies": ("copy", "cat", "index", "clone", "gather", "stack", "contiguous", "_to_", "fill"),
    "elementwise": ("add", "sub", "mul", "div", "neg", "pow", "where", "sum", "amax", "arange"),
}
"""Kinds of operators and words in their names; the first kind with a matching word counts."""


def kind_of(operator: str) -> str:
    """Return the kind that an operator is counted under; `other` where no word matches."""
    name = operator.removeprefix("aten::")
    return next((kind for kind, words in KINDS.items() if any(w in name for w in words)), "other")


def profile(
    work: Callable[[], object], folder: str | Path, *, name: str, top: int = 12
) -> dict[str, float]:
    """Run `work` once under torch's profiler, after a warm-up run.

    Args:
        work: what is profiled.
        folder: gets `<name>.trace.json`, which chrome://tracing and ui.perfetto.dev open.
        name: of the trace.
        top: number of operators in the table on stdout.

    Returns:
        `<name>, share of time: <kind>` for each kind of operator and for `outside operators`
        (Python, files, waiting for a device). With several threads shares can sum to over 1.
    """
    path, slug = Path(folder), re.sub(r"[^a-z]+", "-", name.lower())
    path.mkdir(parents=True, exist_ok=True)
    work()
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    with profiler(activities=activities) as trace:
        start = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        wall = time.perf_counter() - start
    trace.export_chrome_trace(str(path / f"{slug}.trace.json"))
    operators = sorted(trace.key_averages(), key=_self_time, reverse=True)
    table = Table(title=f"{name}: operators, of {wall:.3g} s under the profiler")
    for column in ("operator", "calls", "share of time"):
        table.add_column(column, justify="left" if column == "operator" else "right")
    shares: dict[str, float] = {}
    for i, operator in enumerate(operators):
        share = _self_time(operator) / 1e6 / wall
        kind = kind_of(operator.key)
        shares[kind] = shares.get(kind, 0.0) + share
        if i < top:
            table.add_row(operator.key, f"{operator.count:,}", f"{share:.1%}")
    Console().print(table)
    shares["outside operators"] = max(0.0, 1 - sum(shares.values()))
    ranked = sorted(shares.items(), key=lambda item: -item[1])
    return {f"{name}, share of time: {kind}": share for kind, share in ranked}


def _self_time(event: Any) -> float:
    """Return an operator's own microseconds, without those it calls; on the device if any."""
    device = float(getattr(event, "self_device_time_total", 0) or 0)
    return device if torch.cuda.is_available() else float(event.self_cpu_time_total)
