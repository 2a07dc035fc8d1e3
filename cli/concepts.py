"""Write rows for concept directions: statements with a prefix that names a concept, and without.

CONCEPTS is a text file with a concept a line, each statement file has a statement a line. Of every
concept the rows of label `with` have the prefix, which is their marked span; those of label
`without` have none, and equal ones are run once for all concepts. Build a store from them with
--sites resid_post,attention and --positions template:K, and analyze it with --stages concepts.
"""

import argparse
import json
from pathlib import Path

from actcache.cli.terminal import console
from actcache.cli.terminal.options import add_output, add_overwrite, add_settings, given_settings
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
    add_output(command, "ROWS", "the rows to write, ROWS.jsonl")
    add_overwrite(command, "replace the file at ROWS, if there is one")


def run(args: argparse.Namespace) -> None:
    """Check concepts and statements, write the rows, and say how many."""
    rows = ConceptRows(
        concepts=read_lines(args.concepts),
        pools=[read_lines(path) for path in args.statements],
        settings=ConceptSettings(**given_settings(args, ConceptSettings)),
    )
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
