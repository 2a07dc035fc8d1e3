"""Lists of phrases: published ones of refusals, and files of the user's."""

import json
from dataclasses import dataclass
from pathlib import Path

from actcache.errors import ActcacheError

_FOLDER = Path(__file__).with_name("phrase_lists")

DEFAULT = "refusal_direction"
"""The list of refusal phrases that is used where none is given."""


@dataclass(frozen=True, kw_only=True)
class PhraseList:
    """Phrases, and where they come from."""

    source: str
    phrases: tuple[str, ...]


def published_lists() -> list[str]:
    """Name the lists of refusal phrases that come with the package."""
    return sorted(path.stem for path in _FOLDER.glob("*.json"))


def load_phrases(name: str | Path = DEFAULT) -> PhraseList:
    """Load a published list by its name, or a text file with a phrase a line.

    Raises:
        ActcacheError: there is no such list or file, or it has no phrase or an empty one.
    """
    if name in published_lists():
        document = json.loads((_FOLDER / f"{name}.json").read_text(encoding="utf-8"))
        return PhraseList(source=document["source"], phrases=tuple(document["phrases"]))
    try:
        lines = Path(name).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "no UTF-8"
        raise ActcacheError(
            f"'{name}' cannot be read ({reason}), expected a text file with a phrase a line, or "
            f"{' or '.join(published_lists())}. Pass one of them."
        ) from None
    if not lines:
        raise ActcacheError(
            f"'{name}' is empty, expected a phrase a line. Write some, or pass another file."
        )
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            raise ActcacheError(
                f"'{name}' line {number} is empty, expected a phrase: an empty one would be part "
                "of every text. Remove that line."
            )
    return PhraseList(source=str(name), phrases=tuple(line.strip() for line in lines))
