"""Write report.html and the pictures again, from what analyze, steer or concepts left.

Reads the folder and the sweep: no other store, no model, no torch. The page holds everything that
it shows and opens from disk in any browser.
"""

import argparse

from actcache.cli.terminal import console
from actcache.cli.terminal.options import add_format, names

EXAMPLE = "actcache report results --format png,svg"


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    command.add_argument("path", metavar="OUT|GEN", help="what analyze, steer or concepts left")
    add_format(command)


def run(args: argparse.Namespace) -> None:
    """Write, and list what was written."""
    from actcache.analysis.report_files import write_report

    written = write_report(args.path, formats=names(args.format) or ())
    console.print_result(
        {path.name: f"{path.stat().st_size:,} bytes" for path in written}
        if not args.json
        else {path.name: path.stat().st_size for path in written},
        as_json=args.json,
    )
