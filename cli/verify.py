"""Check a store: every block, column and document against its checksum, every file accounted for.

If anything is wrong, says what and where, and exits with 1. With --recompute K, also runs K random
rows through the model again, one by one and unpadded, and compares them with the stored residuals.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actcache.build.config import BuildConfig
from actcache.cli.terminal import console
from actcache.cli.terminal.options import add_settings_of
from actcache.cli.terminal.threads import choose_threads
from actcache.errors import FormatError, MismatchError
from actcache.settings import MAX_SEED

EXAMPLE = "actcache verify rows.zarr --recompute 10"

if TYPE_CHECKING:
    from actcache.store.store import Store


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    add = command.add_argument
    add("store", metavar="STORE", help="a store or a sweep's results")
    add("--recompute", type=int, default=0, metavar="K", help="run K random rows again")
    add("--seed", type=int, default=0, help="of the rows to run again (default %(default)s)")
    add("--model", help="where the store's model is now, if it was moved")
    add_settings_of(command, BuildConfig, "device")
    add("--partial", action="store_true", help="check what an interrupted build has committed")


def run(args: argparse.Namespace) -> None:
    """Check, print, and fail if anything is wrong."""
    from actcache.store.store import open_store
    from actcache.store.verify import verify

    if args.recompute < 0:
        raise MismatchError(
            f"--recompute is {args.recompute}, expected a number of rows. Pass 1 or more."
        )
    if not 0 <= args.seed <= MAX_SEED:
        raise MismatchError(f"--seed is {args.seed}, expected 0 to {MAX_SEED}. Try 0.")
    if (Path(args.store) / "summary.json").is_file():
        from actcache.analysis.results_folder import place_of_sweep

        raise MismatchError(
            f"'{args.store}' is a folder of results, expected a store. Pass its sweep, "
            f"'{place_of_sweep(Path(args.store))}', or the store that the results were made from."
        )
    problems = verify(args.store, partial=args.partial)
    facts: dict[str, Any] = {"path": args.store, "problems": list(map(str, problems))}
    if not problems:
        store = open_store(args.store, partial=args.partial)
        facts |= {"rows": store.n, "bytes checked": store.n_bytes}
        if args.recompute:
            facts |= _recomputed(store, args)
    if args.json:
        console.print_json(facts)
    else:
        console.print_facts({**facts, "problems": "\n".join(facts["problems"]) or "none"})
    if problems:
        raise FormatError(
            f"'{args.store}' has {len(problems)} damaged or stray files, the first: {problems[0]} "
            "Build it again, or restore these files."
        )


def _recomputed(store: "Store", args: argparse.Namespace) -> dict[str, Any]:
    from actcache.build.certify import certify, rows_to_certify
    from actcache.build.replay import load_store_model, rendered_rows
    from actcache.engine.self_check import error_bound

    if store.kind != "residuals":
        raise MismatchError(
            f"'{store.path}' holds a {store.kind}, expected residuals, whose rows can be run "
            "again. Pass a store that build wrote, or leave --recompute out."
        )
    choose_threads(store.d_model)
    model = load_store_model(store, name=args.model, device=args.device)
    rows = rendered_rows(store)
    certificate = certify(
        store,
        model,
        {i: rows[i] for i in rows_to_certify(len(rows), seed=args.seed, n_rows=args.recompute)},
        positions=store.positions,
        sites=store.sites,
        answer=store.config["answer"],
    )
    worst, bound = max(certificate["sites"].values()), error_bound(model)
    if worst > bound:
        raise MismatchError(
            f"rows run again alone differ from '{store.path}' by {worst:.2g} of their size, "
            f"expected at most {bound:g}. Build it again; if it stays, tell us the model."
        )
    return {"rows run again": len(certificate["rows"]), "largest relative error": worst}
