"""Rows of data as samples: the format is told by the keys, and every row is checked.

A bad row stops here with one line that names file, line, key and remedy, before a model is loaded.
`sources` opens the data; nothing here knows tokens, models or stores.
"""

from collections.abc import Generator, Mapping
from contextlib import closing
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from itertools import islice
from typing import Any

from actcache.conventions import SPLITS, VARIANTS
from actcache.data.messages import MESSAGES, read_messages
from actcache.data.readers import RawRow, json_type
from actcache.data.samples import History, Sample, letter_of
from actcache.data.sources import Data, RowSource, open_sources
from actcache.data.spans import SPAN, marked_span
from actcache.data.tables import Note
from actcache.errors import RowError
from actcache.names import name_problem, suggestion


@dataclass(frozen=True)
class _Field:
    """What a row may hold under the key of one field of `Sample`."""

    required: bool = True
    number: bool = False
    """Whether a whole number counts as text: ids and labels are often numbers."""

    is_name: bool = False
    """Whether files and arrays are named after it; see `actcache.names`."""

    is_id: bool = False

    words: tuple[str, ...] = ()
    """The only words that are allowed; empty for any text."""


_FIELDS = {
    "prompt": _Field(),
    "positive": _Field(),
    "negative": _Field(),
    "label": _Field(number=True, is_name=True),
    "id": _Field(required=False, number=True, is_id=True),
    "behavior": _Field(required=False, is_name=True),
    "split": _Field(required=False, words=SPLITS),
    "system": _Field(required=False),
    "variant": _Field(required=False, words=VARIANTS),
}
_OPTIONAL_KEYS = {name: name for name, field in _FIELDS.items() if not field.required}


@dataclass(frozen=True)
class _Format:
    name: str
    keys: Mapping[str, str]
    """The row's key of each field of `Sample`; `outer.inner` where the row holds objects."""

    @cached_property
    def outer_keys(self) -> tuple[str, ...]:
        """The keys by which the format is known."""
        return tuple(dict.fromkeys(key.partition(".")[0] for key in self.keys.values()))

    @cached_property
    def read_keys(self) -> frozenset[str]:
        """The keys of a row that are read into a sample; all others are kept beside it."""
        return frozenset((*self.outer_keys, *_OPTIONAL_KEYS, SPAN, *self.keys))

    @cached_property
    def fields(self) -> list[tuple[str, str, _Field]]:
        """Name and key of each field that a row may hold, and what it may hold there."""
        keys = {**self.keys, **_OPTIONAL_KEYS}
        return [(name, key, _FIELDS[name]) for name, key in keys.items()]


_PAIR = ("prompt", "positive", "negative")
_MWE = ("question", "answer_matching_behavior", "answer_not_matching_behavior")
_BENCH = ("positive.prompt", "positive.response", "negative.response")
_PLAIN = _Format("prompt", {"prompt": "prompt"})
_FORMATS = (
    _Format("pair", dict(zip(_PAIR, _PAIR, strict=True))),
    _Format("MWE", dict(zip(_PAIR, _MWE, strict=True))),
    _Format("steering-bench", dict(zip(_PAIR, _BENCH, strict=True))),  # a pair without a prompt
    _Format("label", {"prompt": "prompt", "label": "label"}),
    _PLAIN,
)
_COMPLETIONS = (*_PAIR[1:], *_MWE[1:])
_KEYS = (*_FIELDS, MESSAGES, SPAN, *_MWE)
"""All keys that mean something."""

_NEAR = 0.85
"""How alike a key must be to one that means something, for a note that it does not."""


def read_samples(
    data: Data,
    *,
    limit: int | None = None,
    split: str | None = None,
    map: Mapping[str, str] | None = None,
    note: Note = lambda _sentence: None,
) -> list[Sample]:
    """Read and check the rows of one or more data sources.

    Each source has one format, told by the keys of its first row:
    `prompt, positive, negative` (texts); `question, answer_matching_behavior,
    answer_not_matching_behavior` (Model-Written Evaluations, and CAA); `positive, negative`
    (objects with `prompt` and `response`, as steering-bench writes them); `prompt, label`; `prompt`
    alone. `messages` may stand for `prompt` (see `read_messages`). A row may also have `id`,
    `behavior`, `split`, `system`, `variant` and `span` (see `marked_span`); other keys are kept in
    `Sample.extra`. Null and an empty csv cell count as missing. Completions are used as given;
    labels are stripped.

    Args:
        data: a `.jsonl`, `.json`, `.csv` or `.tsv` file, each also as `.gz`; a `.parquet` file; `-`
            for JSON on stdin; globs of files such as "rows/*.jsonl"; folders made by
            `datasets.save_to_disk` and Hub ids (these two with an optional `:split`); or a list of
            these. Or rows in memory: a list of mappings, a pandas DataFrame, a `datasets.Dataset`
            or `DatasetDict`. Or a mapping of behaviors to any of these or to a list of prompts.
        limit: read only the first so many rows of each source.
        split: of data sets with several splits, which to read; by default `train`.
        map: for each key that a row should have, the name that it has in the data, for example
            `{"prompt": "question"}`.
        note: called with each sentence about what is ignored, or looks like a mistake.

    Returns:
        The samples in order of sources and rows. `split` is empty where the row has none.

    Raises:
        RowError: a source or a row cannot be used; names the place, what was found, the remedy.

    Example:
        >>> rows = [{"prompt": "Well?", "positive": " (A)", "negative": " (B)"}]
        >>> [(s.id, s.letter, s.positive) for s in read_samples({"mood": rows})]
        [('mood/0', 'A', ' (A)')]
        >>> [s.prompt for s in read_samples({"greetings": ["Hello.", "How are you?"]})]
        ['Hello.', 'How are you?']
    """
    if limit is not None and limit < 1:
        raise RowError(f"--limit is {limit}, expected at least 1. Drop it to read all rows.")
    samples: list[Sample] = []
    places: dict[str, str] = {}
    kinds: dict[str, str] = {}  # the kind of a sample -> the first place of that kind
    for source in open_sources(data, split=split, note=note):
        n_before = len(samples)
        with closing(_source_samples(source, limit, map or {}, note)) as checked:
            for sample, place in checked:
                if sample.id in places:
                    raise RowError(
                        f"{place}: the id '{sample.id}' is already used by {places[sample.id]}, "
                        'expected a unique one. Change "id", or pass each file once, under its own '
                        "name."
                    )
                places[sample.id] = place
                samples.append(sample)
                kinds.setdefault(sample.kind, place)
                if len(kinds) == 2:
                    (kind, first), (other, second) = kinds.items()
                    raise RowError(
                        f"{first} {_HAS[kind]}, {second} {_HAS[other]}; a store holds one "
                        "kind. Build two stores."
                    )
        if len(samples) == n_before:
            raise RowError(
                f"{source.place} is empty, expected at least one row. Add rows, or drop it."
            )
    return samples


_HAS = {
    "pair": "has two completions",
    "label": "has a label",
    "prompt": "has a prompt alone",
}


def _source_samples(
    source: RowSource, limit: int | None, key_map: Mapping[str, str], note: Note
) -> Generator[tuple[Sample, str], None, None]:
    first: tuple[_Format, str] | None = None
    n_answers = 0
    extra: dict[str, None] = {}
    with closing(source.rows):
        for number, raw in enumerate(islice(source.rows, limit)):
            row, history, has_answer = _prepared(raw, key_map, is_first=first is None)
            row_format = _format_of(row, first)
            first = first or (row_format, row.place)
            sample = _sample(row, row_format, history, behavior=source.behavior, number=number)
            n_answers += has_answer
            extra |= dict.fromkeys(sample.extra)
            yield sample, row.place
    if n_answers:
        note(
            f"{source.place}: in {n_answers} row{'s'[: n_answers > 1]} the answer that ends "
            f"'{MESSAGES}' is ignored: a prompt ends where the answer begins"
        )
    for key in extra:
        near = get_close_matches(key, _KEYS, n=1, cutoff=_NEAR)
        if key == MESSAGES:
            note(
                f"{source.place}: '{MESSAGES}' is kept as a column: 'prompt' is read. To read the "
                f"conversations, rename that with --map"
            )
        elif near:
            note(
                f"{source.place}: the key '{key}' is kept as a column. If '{near[0]}' was meant: "
                f"--map {near[0]}={key}"
            )


def _prepared(
    raw: RawRow, key_map: Mapping[str, str], *, is_first: bool
) -> tuple[RawRow, History, bool]:
    """A row with its keys renamed, and its conversation taken apart."""
    values = dict(raw.values)
    for name, key in key_map.items():
        if is_first and key not in raw.values:
            raise RowError(
                f"{raw.place}: --map {name}={key} names '{key}', but the keys are "
                f"{', '.join(raw.values) or 'none'}. {suggestion(key, raw.values)}Name one of them."
            )
        values.pop(key, None)
    for name, key in key_map.items():
        if name in values:
            raise RowError(
                f"{raw.place}: --map {name}={key} would replace the row's own '{name}', expected a "
                f"new name. Rename that one too: --map {name}={key},other_{name}={name}."
            )
        values[name] = raw.values.get(key)
    row = RawRow(values, raw.place, raw.source)
    if values.get(MESSAGES) is None or "prompt" in values or "question" in values:
        return row, (), False
    return read_messages(row)


def _format_of(row: RawRow, first: tuple[_Format, str] | None) -> _Format:
    """Tell a row's format by its keys; the source's first row decides for all."""
    row_format = next((f for f in _FORMATS if all(k in row.values for k in f.outer_keys)), None)
    if first is not None and (
        row_format is None or (row_format is _PLAIN and first[0] is not _PLAIN)
    ):
        missing = next(key for key in first[0].outer_keys if key not in row.values)
        raise RowError(f"{row.place}: '{missing}' {_problem(None, _FIELDS['prompt'])}")
    half = [key for key in _COMPLETIONS if row.values.get(key) is not None]
    if row_format is None or (row_format is _PLAIN and half):
        keys = ", ".join(row.values) or "none"
        known = "; ".join(f"{f.name}: {', '.join(f.outer_keys)}" for f in _FORMATS)
        near = next((s for k in row.values if k not in _KEYS and (s := suggestion(k, _KEYS))), "")
        raise RowError(
            f"{row.place}: the keys are {keys}, expected those of a format ({known}; 'messages' "
            f"may stand for 'prompt'). {near}Rename the keys, or pass --map NAME=KEY."
        )
    if first is not None and row_format is not first[0]:
        raise RowError(
            f"{row.place}: has the format {row_format.name}, but {first[1]} has {first[0].name}; a "
            "file has one format. Split it into two files."
        )
    return row_format


def _sample(
    row: RawRow, row_format: _Format, history: History, *, behavior: str, number: int
) -> Sample:
    if row_format.name == "pair" and row.values.get("label") is not None:
        raise RowError(
            f"{row.place}: has a 'label' as well as two completions, expected one or the other. "
            "Drop 'label', or 'positive' and 'negative'."
        )
    flat = _flattened(row) if row_format.name == "steering-bench" else row
    fields: dict[str, Any] = {"positive": None, "negative": None, "label": None}
    for name, key, field in row_format.fields:
        fields[name] = _value(flat, key, field)
    if fields["behavior"] is None:
        if problem := _problem(behavior, _FIELDS["behavior"]):
            raise RowError(f"{row.place}: 'behavior' {problem}")
        fields["behavior"] = behavior
    if fields["label"] is not None:
        fields["label"] = fields["label"].strip()
    fields["id"] = fields["id"] or f"{fields['behavior']}/{number}"
    fields["variant"] = fields["variant"] or "base"
    fields["split"] = fields["split"] or ""
    positive, negative = fields["positive"], fields["negative"]
    if positive is not None and positive.strip() == negative.strip():
        raise RowError(
            f"{row.place}: both completions are {_quoted(positive.strip())}, expected two that "
            "differ. Change one, or drop the row."
        )
    mark = marked_span(row, prompt=fields["prompt"], system=fields["system"])
    return Sample(
        **fields,
        letter=letter_of(positive, negative),
        span=mark.span,
        span_part=mark.part,
        span_text=mark.text,
        source=row.source,
        history=history,
        extra={key: x for key, x in row.values.items() if key not in row_format.read_keys},
    )


def _flattened(row: RawRow) -> RawRow:
    """Spell the keys of the two objects of a steering-bench row as `outer.inner`."""
    values = dict(row.values)
    for side in ("positive", "negative"):
        inner = values.pop(side)
        if not isinstance(inner, dict):
            raise RowError(
                f"{row.place}: '{side}' is {json_type(inner)}, expected an object with 'prompt' "
                "and 'response'. Write one, or add a 'prompt' to the row."
            )
        values.update({f"{side}.{key}": value for key, value in inner.items()})
    flat = RawRow(values, row.place, row.source)
    prompts = [
        _value(flat, f"{side}.prompt", _FIELDS["prompt"]) for side in ("positive", "negative")
    ]
    if prompts[0] != prompts[1]:
        raise RowError(
            f"{row.place}: 'positive.prompt' is {_quoted(str(prompts[0]))}, 'negative.prompt' "
            f"{_quoted(str(prompts[1]))}, expected one prompt for both. Make them equal."
        )
    return flat


def _value(row: RawRow, key: str, field: _Field) -> str | None:
    """Read the text under a key; None if it is missing and may be."""
    value: Any = row.values.get(key)
    if value is None and not field.required:
        return None
    if field.number and type(value) is int:  # True is an int too, but not an id
        value = str(value)
    if problem := _problem(value, field):
        raise RowError(f"{row.place}: '{key}' {problem}")
    return str(value)


def _problem(value: object, field: _Field) -> str | None:
    """Say what is wrong with a value, what was expected, and the remedy."""
    if value is None:
        return "is missing, expected text. Add it, or drop the row."
    if not isinstance(value, str):
        return f"is {json_type(value)}, expected text. Write it as text."
    if not value.strip():
        content = "only white space" if value else "empty"
        what = "row" if field.required else "key"
        return f"is {content}, expected text. Write some, or drop the {what}."
    if "\0" in value:
        return f"has a NUL at character {value.index(chr(0))}, expected text. Remove it."
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        return "has half a surrogate pair, which UTF-8 cannot hold. Remove it."
    if field.words and value not in field.words:
        words = ", ".join(field.words)
        return f"is {_quoted(value)}, expected one of {words}. Write one of them, or drop the key."
    if field.is_name or field.is_id:
        problem = name_problem(value.strip(), is_id=field.is_id)
        return problem and f"{problem}. Rename it."
    return None


def _quoted(value: str) -> str:
    return repr(value if len(value) <= 60 else value[:57] + "…")
