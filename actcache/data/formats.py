"""From data files to samples: formats found by their keys, every row checked, ids given.

A bad row stops here with one line that names file, line, key and remedy, before a model is loaded.
Refuses to know how files are decoded (`row_files`), and tokens, models and stores.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from actcache.conventions import SPLITS, VARIANTS
from actcache.data.readers import RawRow, kind_of, raw_rows
from actcache.data.samples import Sample, letter_of
from actcache.data.spans import marked_span
from actcache.errors import RowError

_OPTIONAL = ("id", "behavior", "split", "system", "variant")
_MATCHING, _OTHER = "answer_matching_behavior", "answer_not_matching_behavior"


@dataclass(frozen=True)
class _Content:
    prompt: str
    positive: str | None = None
    negative: str | None = None
    label: str | None = None


@dataclass(frozen=True)
class _Format:
    name: str
    keys: tuple[str, ...]
    content: Callable[[RawRow], _Content]


def read_samples(paths: Sequence[str | Path], *, limit: int | None = None) -> list[Sample]:
    """Read and check the rows of one or more data sources.

    Each source has one format, found by the keys of its first row:
    `prompt, positive, negative` (texts); `question, answer_matching_behavior,
    answer_not_matching_behavior` (Model-Written Evaluations, and CAA); `positive, negative`
    (objects with `prompt` and `response`, as steering-bench writes them); `prompt, label`. A row
    may also bring `id`, `behavior`, `split`, `system`, `variant` and `span` (see `marked_span`);
    other keys are ignored. Null and an empty csv cell count as missing. Completions are kept as
    given; labels are stripped.

    Args:
        paths: `.jsonl`, `.json` or `.csv` files, folders made by `datasets.save_to_disk`, Hub ids
            (these two with an optional `:split`).
        limit: read only the first so many rows of each source.

    Returns:
        The samples in order of sources and rows. `split` is empty where the row brings none.

    Raises:
        RowError: a source or a row cannot be used; names the place, what was found, the remedy.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "mood.jsonl"
        >>> _ = path.write_text('{"prompt": "Well?", "positive": " (A)", "negative": " (B)"}')
        >>> [(s.id, s.letter, s.positive) for s in read_samples([path])]
        [('mood/0', 'A', ' (A)')]
    """
    if limit is not None and limit < 1:
        raise RowError(f"--limit is {limit}, expected at least 1. Drop it to read all rows.")
    if not paths:
        raise RowError(
            "no data given, expected at least one file. Pass a .jsonl, .json or .csv file."
        )
    samples: list[Sample] = []
    places: dict[str, str] = {}
    kinds: dict[bool, str] = {}  # whether a sample has a label -> the first place of that kind
    for path in [paths] if isinstance(paths, str) else paths:
        n_before = len(samples)
        for sample, place in _source_samples(path, limit):
            if sample.id in places:
                raise RowError(
                    f"{place}: the id '{sample.id}' is that of {places[sample.id]}, expected its "
                    'own. Change "id", or pass each file once, under its own name.'
                )
            places[sample.id] = place
            samples.append(sample)
            kinds.setdefault(sample.label is not None, place)
            if len(kinds) == 2:
                raise RowError(
                    f"{kinds[True]} has a label, {kinds[False]} two completions; a store holds one "
                    "kind. Build them as two stores."
                )
        if len(samples) == n_before:
            raise RowError(f"'{path}' is empty, expected at least one row. Add rows, or drop it.")
    _check_labels(samples, limit)
    return samples


def _source_samples(path: str | Path, limit: int | None) -> Iterator[tuple[Sample, str]]:
    behavior, rows = raw_rows(path)
    expected: _Format | None = None
    first = ""
    for number, row in enumerate(islice(rows, limit)):
        found = _format_of(row)
        if expected is None:
            expected, first = _known(found, row), row.place
        elif found is not expected:
            raise _format_error(row, expected=expected, found=found, first=first)
        yield _sample(row, expected, behavior=behavior, number=number), row.place


def _sample(row: RawRow, format_: _Format, *, behavior: str, number: int) -> Sample:
    content = format_.content(row)
    behavior = _name(row, "behavior", _optional(row, "behavior") or behavior)
    return Sample(
        id=_optional(row, "id", number=True) or f"{behavior}/{number}",
        behavior=behavior,
        variant=_one_of(row, "variant", VARIANTS) or "base",
        prompt=content.prompt,
        positive=content.positive,
        negative=content.negative,
        label=content.label,
        letter=letter_of(content.positive, content.negative),
        split=_one_of(row, "split", SPLITS) or "",
        system=_optional(row, "system"),
        span=marked_span(row, content.prompt),
        source=row.source,
    )


def _pair(row: RawRow) -> _Content:
    if row.values.get("label") is not None:
        raise RowError(
            f"{row.place}: has 'label' beside two completions, expected one or the other. "
            "Drop 'label', or 'positive' and 'negative'."
        )
    prompt = _text(row, "prompt")
    return _completed(row, prompt, _text(row, "positive"), _text(row, "negative"))


def _mwe(row: RawRow) -> _Content:
    return _completed(row, _text(row, "question"), _text(row, _MATCHING), _text(row, _OTHER))


def _steering_bench(row: RawRow) -> _Content:
    prompts, responses = [], []
    for side in ("positive", "negative"):
        value = row.values[side]
        if not isinstance(value, dict):
            raise RowError(
                f"{row.place}: '{side}' is {kind_of(value)}, expected an object with 'prompt' and "
                "'response'. Write one, or add a 'prompt' to the row."
            )
        inner = RawRow({f"{side}.{key}": entry for key, entry in value.items()}, row.place, "")
        prompts.append(_text(inner, f"{side}.prompt"))
        responses.append(_text(inner, f"{side}.response"))
    if prompts[0] != prompts[1]:
        raise RowError(
            f"{row.place}: 'positive.prompt' is {_shown(prompts[0])}, 'negative.prompt' "
            f"{_shown(prompts[1])}, expected one prompt for both. Make them equal."
        )
    return _completed(row, prompts[0], *responses)


def _labelled(row: RawRow) -> _Content:
    label = _name(row, "label", _text(row, "label", number=True).strip())
    return _Content(_text(row, "prompt"), label=label)


_FORMATS = (
    _Format("pair", ("prompt", "positive", "negative"), _pair),
    _Format("MWE", ("question", _MATCHING, _OTHER), _mwe),
    _Format("steering-bench", ("positive", "negative"), _steering_bench),  # without a prompt
    _Format("label", ("prompt", "label"), _labelled),
)


def _format_of(row: RawRow) -> _Format | None:
    return next((f for f in _FORMATS if all(key in row.values for key in f.keys)), None)


def _known(found: _Format | None, row: RawRow) -> _Format:
    if found is not None:
        return found
    keys = ", ".join(row.values) or "none"
    known = "; ".join(f"{f.name}: {', '.join(f.keys)}" for f in _FORMATS)
    raise RowError(
        f"{row.place}: the keys are {keys}, expected those of a format ({known}). Rename the keys."
    )


def _format_error(row: RawRow, *, expected: _Format, found: _Format | None, first: str) -> RowError:
    if found is not None:
        return RowError(
            f"{row.place}: has the format {found.name}, but {first} {expected.name}; a file has "
            "one. Make two files of it."
        )
    missing = next(key for key in expected.keys if key not in row.values)
    return _missing(row, missing)


def _completed(row: RawRow, prompt: str, positive: str, negative: str) -> _Content:
    if positive.strip() == negative.strip():
        raise RowError(
            f"{row.place}: both completions are {_shown(positive.strip())}, expected two that "
            "differ. Change one, or drop the row."
        )
    return _Content(prompt, positive, negative)


def _text(row: RawRow, key: str, *, number: bool = False) -> str:
    value = _optional(row, key, number=number)
    if value is None:
        raise _missing(row, key)
    return value


def _optional(row: RawRow, key: str, *, number: bool = False) -> str | None:
    value: Any = row.values.get(key)
    if value is None:
        return None
    if number and type(value) is int:  # ids and labels are often numbers; True is not one
        value = str(value)
    if not isinstance(value, str):
        raise RowError(
            f"{row.place}: '{key}' is {kind_of(value)}, expected text. Write it as text."
        )
    if not value.strip():
        found = "only white space" if value else "empty"
        what = "key" if key in _OPTIONAL else "row"
        raise RowError(
            f"{row.place}: '{key}' is {found}, expected text. Write some, or drop the {what}."
        )
    if "\0" in value:
        at = value.index("\0")
        raise RowError(
            f"{row.place}: '{key}' has a NUL at character {at}, expected text. Remove it."
        )
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise RowError(
            f"{row.place}: '{key}' has half a surrogate pair, which UTF-8 cannot hold. Remove it."
        )
    return value


def _one_of(row: RawRow, key: str, known: tuple[str, ...]) -> str | None:
    value = _optional(row, key)
    if value is not None and value not in known:
        raise RowError(
            f"{row.place}: '{key}' is {_shown(value)}, expected one of {', '.join(known)}. "
            "Write one of them, or drop the key."
        )
    return value


def _name(row: RawRow, key: str, value: str) -> str:
    if any(character in value for character in "/\\") or value in (".", ".."):
        raise RowError(
            f"{row.place}: '{key}' is {_shown(value)}, expected a name without / and \\ "
            "(files and arrays are called by it). Rename it."
        )
    return value


def _missing(row: RawRow, key: str) -> RowError:
    return RowError(f"{row.place}: '{key}' is missing, expected text. Add it, or drop the row.")


def _check_labels(samples: list[Sample], limit: int | None) -> None:
    labels = {sample.label for sample in samples}
    if len(labels) == 1 and None not in labels:
        more = "Raise --limit" if limit is not None else "Add rows of another label"
        raise RowError(
            f"all {len(samples)} rows have the label {_shown(str(*labels))}, expected at least two "
            f"labels. {more}."
        )


def _shown(value: str) -> str:
    return repr(value if len(value) <= 60 else value[:57] + "…")
