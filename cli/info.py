"""Show what a store, results, steered texts or a steering hold: shape, provenance, bytes.

Reads attributes and columns only, without the model and without torch.
"""

import argparse
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actcache.cli.terminal import console
from actcache.errors import FormatError, IncompleteStoreError, StoreNotFoundError

EXAMPLE = "actcache info rows.zarr"

if TYPE_CHECKING:
    from actcache.store.store import Store


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    command.add_argument(
        "path",
        metavar="STORE|OUT|GEN|FILE",
        help="a store, what analyze or steer left, or a steering file",
    )


def run(args: argparse.Namespace) -> None:
    """Open, describe, print."""
    from actcache.store.store import open_store

    path = Path(args.path)
    summary = path / "summary.json"
    facts: dict[str, Any]
    if (path / "configurations.json").is_file():
        from actcache.analysis.files import plain
        from actcache.analysis.generation.folder import open_generations
        from actcache.cli.terminal.show import show_texts

        texts = open_generations(path)
        if not args.json:
            show_texts(texts)
            return
        facts = plain(texts.summary)
    elif summary.is_file():
        from actcache.analysis.files import plain
        from actcache.analysis.summary import Summary
        from actcache.cli.terminal.show import show

        results = Summary.read(summary)
        if not args.json:
            try:
                show(results)
            except (LookupError, TypeError, ValueError, ArithmeticError) as error:
                raise FormatError(
                    f"'{summary}' holds numbers that do not fit together ({error}), expected what "
                    "analyze writes. Run analyze with --overwrite."
                ) from error
            return
        facts = plain(results)
    elif path.is_file() and path.suffix in (".safetensors", ".gguf"):
        facts = describe_steering(path, as_json=args.json)
    elif path.is_dir() and not (path / "zarr.json").exists():
        raise StoreNotFoundError(
            f"no store and no results at '{path}'. Build one with: actcache build DATA --model M "
            f"-o STORE.zarr, or analyze one with: actcache analyze STORE.zarr -o {path}"
        )
    else:
        try:
            store = open_store(path)
        except IncompleteStoreError:
            store = open_store(path, partial=True)
        facts = describe(store)
        if args.json and store.kind == "sweep":
            facts["certificate"] = store.certificate  # numbers
    console.print_result(facts, as_json=args.json)


def describe(store: "Store") -> dict[str, Any]:
    """Facts about a store, by name, in the order in which they are shown."""
    from actcache.store.schema import FORMAT

    model = store.provenance.get("model", {})
    facts: dict[str, Any] = {
        "path": str(store.path),
        "format": FORMAT,
        "kind": store.kind,
        "complete": store.complete,
        "rows": store.n if store.complete else f"{store.n} of {store.n_planned}",
        "behaviors": dict(Counter(store["behavior"].tolist())),
    }
    if store.kind == "residuals":
        reused = store.provenance.get("reused")
        labels = {label: n for label, n in Counter(store["label"].tolist()).items() if label}
        if labels:
            facts["labels"] = labels
        facts |= {
            "variants": sorted(set(store["variant"].tolist())),
            "splits": dict(Counter(store["split"].tolist())),
            "layers": store.n_layers,
            "d_model": store.d_model,
            "positions": list(store.positions),
            "sites": list(store.sites),
            "model": model.get("name", "not recorded"),
            "left out": len(store.left_out),
            **({"rows reused": reused.get("rows")} if isinstance(reused, dict) else {}),
            "preset": store.config.get("preset", "none"),
        }
    facts |= {
        "dtype": model.get("dtype", "not recorded"),
        "weights sha256": model.get("weights_sha256", "not recorded"),
        "shard rows": f"{store.shard_rows} ({store.shard_reason})",
        "bytes on disk": store.n_bytes,
    }
    if store.certificate:
        facts["certificate"] = _certified(store)
    return facts


def describe_steering(path: Path, *, as_json: bool) -> dict[str, Any]:
    """Facts about a steering file: each part's fields, the vectors' norms, and the source.

    JSON has the parts as a list; a table has their fields, numbered if there are several.
    """
    import numpy as np

    from actcache.steering import Steering

    steering = Steering.load(path)
    facts: dict[str, Any] = {"path": str(path), "digest": steering.digest}
    facts |= {"d_model": steering.d_model, "bytes on disk": path.stat().st_size}
    parts, sources = [], []
    for part in steering.parts:
        first = part.vectors if part.vectors.ndim == 2 else part.vectors[:, 0]
        norms = np.linalg.norm(first.astype(np.float64), axis=1)
        parts.append({**part.fields, "norms": [float(f"{norm:.6g}") for norm in norms]})
        sources.append(part.source and part.source.document())
    if as_json:
        pairs = zip(parts, sources, strict=True)
        return facts | {"parts": [{**part, "source": source} for part, source in pairs]}
    for number, fields in enumerate(parts):
        prefix = f"{number}." if len(parts) > 1 else ""
        facts |= {f"{prefix}{name}": _shown(value) for name, value in fields.items()}
        if number == 0 or sources[number] != sources[0]:
            facts |= {f"{prefix}{name}": x for name, x in (sources[number] or {}).items()}
    return facts


def _shown(value: Any) -> Any:
    return ", ".join(map(str, value)) if isinstance(value, list) else value


def _certified(store: "Store") -> Any:
    certificate = store.certificate
    try:
        if store.kind == "sweep":
            return (
                f"cells against full passes differ by {certificate['naive_error']:.1e}; cells that "
                f"add nothing spread by {certificate['noise_floor']:.1e}"
            )
        worst = f"{max(certificate['largest_relative_error']):.1e}"
        n_rows = len(certificate["rows"])
    except (LookupError, TypeError, ValueError):  # another program's
        return certificate
    return f"{n_rows} rows run again alone, unpadded: largest relative error {worst}"
