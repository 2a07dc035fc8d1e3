"""What several commands take: the options of a machine, and lists of numbers.

Refuses to know what is done with them.
"""

import argparse

from actcache.errors import ActcacheError


def add_device_options(group: argparse._ArgumentGroup) -> None:
    """Where a model runs, and how much at a time."""
    add = group.add_argument
    add("--device", default="auto", help="auto (cuda, mps, cpu) or a torch device")
    add("--device-map", metavar="MAP", help="spread over several devices: auto, balanced, …")
    add("--trust-remote-code", action="store_true", help="run code that the checkpoint brings")
    add(
        "--batch-tokens",
        type=int,
        default=2048,
        help="tokens in a pass, the dial of speed against memory; a large GPU takes more "
        "(default %(default)s)",
    )


def numbers(text: str | None, what: str) -> list[int] | None:
    """Numbers and ranges `START:STOP`, STOP not among them; None for None.

    Raises:
        ActcacheError: it is something else; calls it `what`.
    """
    if text is None:
        return None
    found: list[int] = []
    try:
        for part in text.split(","):
            start, colon, stop = part.partition(":")
            found += range(int(start), int(stop) if colon else int(start) + 1)
    except ValueError:
        raise ActcacheError(
            f"{what} are '{text}', expected whole numbers and ranges START:STOP separated by "
            "commas. For example 0:100,205."
        ) from None
    return found
