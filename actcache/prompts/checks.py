"""Conditions that published codes assume of the tokens of an A/B question, checked row by row.

Their reads at index -2 and their scores are only right if the letter is a token of its own with one
token after it, and so on (`CONDITIONS`). Rows that cannot be used are set apart.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from actcache.conventions import NO_PRESET, find_preset
from actcache.data.samples import Sample, letter_of
from actcache.errors import RenderError
from actcache.prompts.render import Rendered, Renderer

CONDITIONS: Mapping[str, str] = {
    "letter": "the first token that differs is not the answer's letter alone",
    "one_after": "the first token that differs is not followed by exactly one token",
    "equal": "the completions differ in more than one token, or in length",
    "bos": "more than one BOS token stands in the prompt",
    "one_space": "not exactly one space stands before the answer",
    "special": "a completion holds a special token, which steering-bench's score skips",
}
"""Each condition, and how a row breaks it; recorded in stores. `Renderer` checks what every preset
needs: that the prompt's tokens are a prefix of both sequences."""

N_NAMED = 3
"""How many ids a finding names."""


@dataclass(frozen=True)
class Finding:
    """One condition that some rows break."""

    condition: str
    """One of `CONDITIONS`."""

    n: int
    """How many rows break it."""

    ids: tuple[str, ...]
    """The first of them, at most `N_NAMED`."""

    @property
    def why(self) -> str:
        """How these rows break it."""
        return CONDITIONS[self.condition]

    def __str__(self) -> str:
        return f"{self.condition} ({self.n}: {first_ids(self.ids, self.n)}): {self.why}"


@dataclass(frozen=True)
class CheckSummary:
    """How many rows were checked, and the conditions that they break."""

    n: int
    """Rows that were checked: pairs that fit into the model's context."""

    findings: tuple[Finding, ...] = ()
    """The broken conditions, in the order of `CONDITIONS`."""

    def recorded(self) -> dict[str, Any]:
        """As JSON, for the store."""
        broken = {
            finding.condition: {"n": finding.n, "first": list(finding.ids), "why": finding.why}
            for finding in self.findings
        }
        return {"checked": self.n, "broken": broken}


@dataclass(frozen=True)
class CheckedRows:
    """The rows that a build uses, and why it leaves out the others."""

    row_numbers: tuple[int, ...]
    """Indices of the usable rows, in order."""

    rendered: tuple[Rendered, ...]
    """Their tokens."""

    left_out: tuple[dict[str, Any], ...]
    """The `id` and `reason` of each other row; of too long ones also `tokens` and `context`."""

    conditions: CheckSummary
    """Of all pairs that could be rendered and fit, including those left out for a condition."""


def broken_conditions(sample: Sample, row: Rendered, renderer: Renderer) -> tuple[str, ...]:
    """List the conditions that a pair breaks, in the order of `CONDITIONS`; none of a label."""
    if sample.positive is None or sample.negative is None:
        return ()
    letters = (letter_of(sample.positive, sample.negative),
               letter_of(sample.negative, sample.positive))  # fmt: skip
    first_tokens = tuple(renderer.word(branch[0]) for branch in (row.positive, row.negative))
    text = renderer.text(sample)
    holds = {
        "letter": "" not in letters and first_tokens == letters,
        "one_after": len(row.positive) == len(row.negative) == 2,
        "equal": row.positive[1:] == row.negative[1:],
        "bos": renderer.bos is None or row.prompt.count(renderer.bos) <= 1,
        "one_space": all(
            _n_spaces(text + renderer.joined(text, completion), completion) == 1
            for completion in (sample.positive, sample.negative)
        ),
        "special": not renderer.special.intersection((*row.shared, *row.positive, *row.negative)),
    }
    return tuple(name for name in CONDITIONS if not holds[name])


def check_rows(
    samples: Sequence[Sample],
    renderer: Renderer,
    *,
    context: int | None,
    preset: str = NO_PRESET,
    skip_bad: bool = False,
) -> CheckedRows:
    """Render and check every row; set apart rows that are too long or, with `skip_bad`, bad.

    A row is bad if prompt and completions share a token, or if it breaks a condition that the
    preset needs. Other broken conditions only appear in the summary. `context` is the longest
    sequence that the model takes; None for any.

    Raises:
        RenderError: there are bad rows, or no row is left.
    """
    refused: dict[int, str] = {}
    rendered: dict[int, Rendered] = {}
    for i, sample in enumerate(samples):
        try:
            rendered[i] = renderer(sample)
        except RenderError as error:
            refused[i] = str(error)
    if refused and not skip_bad:
        raise RenderError(_refusal([samples[i].id for i in refused], refused, len(samples)))

    too_long = too_long_rows(rendered, context)
    reasons: dict[int, dict[str, Any]] = {i: {"reason": text} for i, text in refused.items()}
    for i in sorted(too_long):
        reason = "longer than the model's context"
        reasons[i] = {"reason": reason, "tokens": rendered[i].length, "context": context}

    broken = {
        i: broken_conditions(samples[i], row, renderer)
        for i, row in rendered.items()
        if i not in too_long
    }
    needed = find_preset(preset).conditions
    bad = {i: [name for name in names if name in needed] for i, names in broken.items()}
    bad = {i: names for i, names in bad.items() if names}
    if bad and not skip_bad:
        remedy = "Choose other settings or no preset."
        if len(bad) < len(broken):
            remedy = (
                "Pass --skip-bad-rows to leave them out, or choose other settings or no preset."
            )
        raise RenderError(
            f"{len(bad)} of {len(broken)} rows break conditions that the preset {preset} needs: "
            f"{'; '.join(str(finding) for finding in _findings(samples, bad))}. {remedy}"
        )
    for i, names in bad.items():
        reasons[i] = {"reason": "; ".join(CONDITIONS[name] for name in names)}

    row_numbers = tuple(i for i in range(len(samples)) if i not in reasons)
    left_out = tuple({"id": samples[i].id, **reasons[i]} for i in sorted(reasons))
    if not row_numbers:
        raise RenderError(_nothing_left(left_out, context))
    n_pairs = sum(samples[i].positive is not None for i in broken)
    return CheckedRows(
        row_numbers,
        tuple(rendered[i] for i in row_numbers),
        left_out,
        CheckSummary(n_pairs, tuple(_findings(samples, broken))),
    )


def too_long_rows(rendered: Mapping[int, Rendered], context: int | None) -> set[int]:
    """Find the rows that do not fit; none is truncated: that would be another prompt."""
    if context is None:
        return set()
    return {i for i, row in rendered.items() if row.length > context}


def first_ids(ids: Sequence[str], n: int) -> str:
    """Join the first ids of `n`, with an ellipsis if there are more."""
    return ", ".join(ids) + (", …" if n > len(ids) else "")


def _findings(samples: Sequence[Sample], broken: Mapping[int, Iterable[str]]) -> list[Finding]:
    rows: dict[str, list[str]] = {name: [] for name in CONDITIONS}
    for i, names in broken.items():
        for name in names:
            rows[name].append(samples[i].id)
    return [Finding(name, len(ids), tuple(ids[:N_NAMED])) for name, ids in rows.items() if ids]


def _refusal(ids: Sequence[str], refused: Mapping[int, str], n: int) -> str:
    message = next(iter(refused.values()))
    if len(ids) == n:
        return message if n == 1 else f"{message} All {n} rows fail in this way."
    if len(ids) == 1:
        return f"{message} Or pass --skip-bad-rows to leave the row out."
    return (
        f"{message} In total {len(ids)} of {n} rows fail ({first_ids(ids[:N_NAMED], len(ids))}); "
        "--skip-bad-rows leaves them out."
    )


def _nothing_left(left_out: Sequence[Mapping[str, Any]], context: int | None) -> str:
    n = len(left_out)
    too_long = [row for row in left_out if "tokens" in row]
    if len(too_long) < n:
        first = next(row for row in left_out if "tokens" not in row)
        return (
            f"all {n} rows are left out, expected at least one usable row; the first, "
            f"'{first['id']}': {first['reason']}. Choose other settings, or another preset."
        )
    shortest = min(too_long, key=lambda row: int(row["tokens"]))
    return (
        f"all {n} rows are longer than the model's context of {context} tokens; the "
        f"shortest, '{shortest['id']}', has {shortest['tokens']}. Use a model with a longer "
        "context, or shorter prompts."
    )


def _n_spaces(text: str, completion: str) -> int:
    """Count the spaces right before the visible part of the completion."""
    before = text.rstrip().removesuffix(completion.strip())
    return len(before) - len(before.rstrip(" "))
