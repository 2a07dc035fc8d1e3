"""Where the time of one run goes: a Chrome trace on disk, and the dearest operators in a table.

`--profile DIR` of a benchmark comes here. A profiled run is slower than a measured one, so it is a
run of its own and no figure is taken from it but shares.
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
"""Kinds of operators and the words in their names, in order; the first kind that fits counts."""


def kind_of(operator: str) -> str:
    """The kind that an operator is counted under; `other` where no word fits."""
    name = operator.removeprefix("aten::")
    return next((kind for kind, words in KINDS.items() if any(w in name for w in words)), "other")


def profile(
    work: Callable[[], object], folder: str | Path, *, name: str, top: int = 12
) -> dict[str, float]:
    """Run `work` once under torch's profiler, after one run that warms up.

    Args:
        work: what is looked at.
        folder: gets `<name>.trace.json`, which chrome://tracing and ui.perfetto.dev open.
        name: of the trace.
        top: how many operators the table on stdout has.

    Returns:
        `<name>, share of time: <kind>` of each kind of operator, and of `outside operators` (Python,
        files, waiting for a device). On several threads shares can add up to more than 1.
    """
    path, slug = Path(folder), re.sub(r"[^a-z]+", "-", name.lower())
    path.mkdir(parents=True, exist_ok=True)
    work()
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    with profiler(activities=activities) as seen:
        start = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        wall = time.perf_counter() - start
    seen.export_chrome_trace(str(path / f"{slug}.trace.json"))
    operators = sorted(seen.key_averages(), key=_self_time, reverse=True)
    table = Table(title=f"{name}: operators, of {wall:.3g} s under the profiler")
    for column in ("operator", "calls", "share of time"):
        table.add_column(column, justify="left" if column == "operator" else "right")
    shares: dict[str, float] = {}
    for i, each in enumerate(operators):
        share = _self_time(each) / 1e6 / wall
        kind = kind_of(each.key)
        shares[kind] = shares.get(kind, 0.0) + share
        if i < top:
            table.add_row(each.key, f"{each.count:,}", f"{share:.1%}")
    Console().print(table)
    shares["outside operators"] = max(0.0, 1 - sum(shares.values()))
    ranked = sorted(shares.items(), key=lambda item: -item[1])
    return {f"{name}, share of time: {kind}": share for kind, share in ranked}


def _self_time(event: Any) -> float:
    """Microseconds of an operator without those that it calls, on the device if there is one."""
    device = float(getattr(event, "self_device_time_total", 0) or 0)
    return device if torch.cuda.is_available() else float(event.self_cpu_time_total)
