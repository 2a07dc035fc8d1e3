"""Write rows for concept directions: statements with a prefix that names a concept, and without.

CONCEPTS is a text file with a concept a line, each statement file has a statement a line. Of every
concept the rows of label `with` have the prefix, which is their marked span; those of label
`without` have none, and equal ones are run once for all concepts. Build a store from them with
--sites resid_post,attention,attention_control and --positions template:K, and analyze it with
--stages concepts; or give the model here, and each concept is built and fitted in turn.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from actcache.analysis.config import SERIES_OF_ANALYSIS, SERIES_OF_BUILD, AnalyzeConfig
from actcache.build.config import BuildConfig
from actcache.cli.terminal import console
from actcache.cli.terminal.options import (
    add_output,
    add_overwrite,
    add_settings,
    add_settings_of,
    given_settings,
    names,
)
from actcache.cli.terminal.threads import choose_threads, width_of
from actcache.data.concepts import ConceptRows, ConceptSettings, read_lines

EXAMPLE = (
    "actcache concepts fears.txt --statements statements.txt "
    "--prefix 'You are terrified of {concept}.' -o fears.jsonl"
)


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    add = command.add_argument
    add("concepts", metavar="CONCEPTS", help="text file, a concept a line")
    add("--statements", nargs="+", required=True, metavar="FILE", help="text, a statement a line")
    add_settings(command, ConceptSettings, {})
    add_output(command, "OUT", "the rows to write, ROWS.jsonl; with --model a folder")
    add_overwrite(command, "replace the file at OUT, if there is one")
    group = command.add_argument_group(
        "directions",
        "With --model each concept is built and fitted in turn; OUT then has directions and\n"
        "scores. An interrupted run goes on at the concept it was at.",
    )
    group.add_argument("--model", help="Hub id or folder; without it the rows are written")
    group.add_argument("--keep", action="store_true", help="leave the stores of residuals in OUT")
    group.add_argument(
        "--positions",
        default="template:2",
        metavar="LIST",
        help="tokens that are compared, as of build (default: %(default)s)",
    )
    add_settings_of(group, BuildConfig, *SERIES_OF_BUILD)
    add_settings_of(group, AnalyzeConfig, *SERIES_OF_ANALYSIS)


def run(args: argparse.Namespace) -> None:
    """Check concepts and statements, write the rows or fit the concepts, and say how many."""
    rows = ConceptRows(
        concepts=read_lines(args.concepts),
        pools=[read_lines(path) for path in args.statements],
        settings=ConceptSettings(**given_settings(args, ConceptSettings)),
    )
    if args.model is not None:
        _fit(args, rows)
        return
    for flag in ("keep", "trust_remote_code"):
        if getattr(args, flag):
            console.say(f"actcache: --{flag.replace('_', '-')} is ignored: no --model is given")
    from actcache.store.storage.atomic import atomic_path  # imports numpy

    path = Path(args.output)
    n = 0
    with (
        atomic_path(path, overwrite=args.overwrite) as temporary,
        temporary.open("w", encoding="utf-8") as file,
    ):
        for row in rows.rows():
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            n += 1
    facts = {"rows": n, "concepts": len(rows.concepts), "path": str(path)}
    console.print_result(facts, as_json=args.json)


def _fit(args: argparse.Namespace, rows: ConceptRows) -> None:
    """Build and fit every concept, and write the report."""
    of_build = {name: getattr(args, name) for name in SERIES_OF_BUILD}
    build = BuildConfig(model=args.model, positions=names(args.positions) or (), **of_build)
    methods: Any = names(args.methods)  # the settings refuse unknown words
    config = AnalyzeConfig(methods=methods, shuffles=args.shuffles, draws=args.draws)
    choose_threads(width_of(build.model))
    from actcache.analysis.concepts.series import run_series
    from actcache.analysis.files import write_text
    from actcache.analysis.report.concept_pages import concepts_page
    from actcache.analysis.report_files import write_report

    out = Path(args.output)
    progress = console.Bars(quiet=args.json)
    summary = run_series(rows, out, build=build, config=config, keep=args.keep, progress=progress)
    write_text(out / "tables.md", concepts_page(summary))
    write_report(out)
    facts = {"concepts": len(summary.concepts), "path": str(out), "report": "report.html"}
    console.print_result(facts, as_json=args.json)
