"""What published codes take for granted about the tokens of an A/B question, checked row by row.

Their reads at index -2 and their scores mean what they say only if the letter is a token of its own
with one token after it, and so on (`CONDITIONS`). Here each row is checked, all findings are
summed up, and rows that cannot be used are set apart. Knows tokens and a tokenizer; knows no model.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from actcache.conventions import NO_PRESET, conditions_of
from actcache.data.samples import Sample, letter_of
from actcache.errors import RenderError
from actcache.prompts.render import Rendered, Renderer, longest_that_fit

CONDITIONS: Mapping[str, str] = {
    "letter": "the first token that differs is not the answer's letter alone",
    "one_after": "the first token that differs is not followed by exactly one token",
    "equal": "the completions differ in more than one token, or in length",
    "bos": "more than one BOS token stands in the prompt",
    "one_space": "not exactly one space stands before the answer",
    "special": "a completion holds a special token, which steering-bench's score skips",
}
"""Each condition, and what is said of a row that breaks it. That the prompt's tokens are a prefix
of both sequences is checked by `Renderer`: without it a row is of no use to any preset."""

SHOWN = 3
"""How many ids a finding names."""


@dataclass(frozen=True)
class Finding:
    """One condition that some rows break."""

    condition: str
    """Of `CONDITIONS`."""

    n: int
    """How many rows break it."""

    ids: tuple[str, ...]
    """The first of them, `SHOWN` at most."""

    @property
    def why(self) -> str:
        """What is said of such a row."""
        return CONDITIONS[self.condition]

    def __str__(self) -> str:
        return f"{self.n} ({named(self.ids, self.n)}): {self.condition}: {self.why}"


@dataclass(frozen=True)
class CheckSummary:
    """What the check of all rows found."""

    n: int
    """Rows that were checked: pairs that fit into the model's context."""

    findings: tuple[Finding, ...] = ()
    """The conditions that are broken, in the order of `CONDITIONS`."""

    def recorded(self) -> dict[str, Any]:
        """As JSON, for the store."""
        broken = {
            each.condition: {"n": each.n, "first": list(each.ids), "why": each.why}
            for each in self.findings
        }
        return {"checked": self.n, "broken": broken}


@dataclass(frozen=True)
class CheckedRows:
    """Which rows a build keeps, and why it leaves out the others."""

    kept: tuple[int, ...]
    """Indices of the rows that stay, in order."""

    rendered: tuple[Rendered, ...]
    """Their tokens."""

    left_out: tuple[dict[str, Any], ...]
    """Of each other row its `id` and the `reason`; of too long ones `tokens` and `context` too."""

    conditions: CheckSummary
    """Of all pairs that could be rendered and fit, those left out for a condition among them."""


def broken_conditions(sample: Sample, row: Rendered, renderer: Renderer) -> tuple[str, ...]:
    """The conditions that a pair breaks, in the order of `CONDITIONS`; none of a labelled prompt.

    Args:
        sample: a pair.
        row: its tokens.
        renderer: what rendered it.
    """
    if sample.positive is None or sample.negative is None:
        return ()
    letters = (letter_of(sample.positive, sample.negative),
               letter_of(sample.negative, sample.positive))  # fmt: skip
    first = tuple(renderer.word(side[0]) for side in (row.positive, row.negative))
    text = renderer.text(sample)
    holds = {
        "letter": "" not in letters and first == letters,
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


def select_rows(
    samples: Sequence[Sample],
    renderer: Renderer,
    *,
    context: int | None,
    preset: str = NO_PRESET,
    skip_bad: bool = False,
) -> CheckedRows:
    """Render and check every row; set apart what is too long and, if asked to, what is bad.

    Bad is a row that does not part cleanly into tokens, or that breaks a condition which the preset
    needs. Other broken conditions are noted in the summary alone.

    Args:
        samples: all rows.
        renderer: gives their tokens.
        context: the longest sequence that the model takes; None for any.
        preset: of `conventions.PRESET_NAMES`.
        skip_bad: leave bad rows out; by default they are refused.

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

    places = list(rendered)
    fit, too_long = longest_that_fit(list(rendered.values()), context)
    reasons: dict[int, dict[str, Any]] = {i: {"reason": text} for i, text in refused.items()}
    for at in too_long:
        n_tokens = rendered[places[at]].length
        reason = "longer than the model's context"
        reasons[places[at]] = {"reason": reason, "tokens": n_tokens, "context": context}

    broken = {
        places[at]: broken_conditions(samples[places[at]], rendered[places[at]], renderer)
        for at in fit
    }
    wanted = conditions_of(preset)
    bad = {i: [name for name in names if name in wanted] for i, names in broken.items()}
    bad = {i: names for i, names in bad.items() if names}
    if bad and not skip_bad:
        findings = _findings(samples, bad)
        raise RenderError(
            f"{len(bad)} of {len(broken)} rows break what the preset {preset} needs: "
            f"{'; '.join(str(each) for each in findings)}. "
            + ("Pass --skip-bad-rows to leave them out, or c" if len(bad) < len(broken) else "C")
            + "hoose other settings or no preset."
        )
    for i, names in bad.items():
        reasons[i] = {"reason": "; ".join(CONDITIONS[name] for name in names)}

    kept = tuple(i for i in range(len(samples)) if i not in reasons)
    left_out = tuple({"id": samples[i].id, **reasons[i]} for i in sorted(reasons))
    if not kept:
        raise RenderError(_nothing_left(left_out, context))
    n_pairs = sum(samples[i].positive is not None for i in broken)
    return CheckedRows(
        kept,
        tuple(rendered[i] for i in kept),
        left_out,
        CheckSummary(n_pairs, tuple(_findings(samples, broken))),
    )


def named(ids: Sequence[str], n: int) -> str:
    """The first ids, and that there are more, if there are `n`."""
    return ", ".join(ids) + (", …" if n > len(ids) else "")


def _findings(samples: Sequence[Sample], broken: Mapping[int, Iterable[str]]) -> list[Finding]:
    rows: dict[str, list[str]] = {name: [] for name in CONDITIONS}
    for i, names in broken.items():
        for name in names:
            rows[name].append(samples[i].id)
    return [Finding(name, len(ids), tuple(ids[:SHOWN])) for name, ids in rows.items() if ids]


def _refusal(ids: Sequence[str], refused: Mapping[int, str], n: int) -> str:
    message = next(iter(refused.values()))
    if len(ids) == n:
        return message if n == 1 else f"{message} All {n} rows are refused so."
    if len(ids) == 1:
        return f"{message} Or pass --skip-bad-rows to leave the row out."
    shown = named(ids[:SHOWN], len(ids))
    return (
        f"{message} In all {len(ids)} of {n} rows are refused ({shown}); --skip-bad-rows leaves "
        "them out."
    )


def _nothing_left(left_out: Sequence[Mapping[str, Any]], context: int | None) -> str:
    n = len(left_out)
    long = [row for row in left_out if "tokens" in row]
    if len(long) < n:
        first = next(row for row in left_out if "tokens" not in row)
        return (
            f"all {n} rows are left out, expected one at least that can be used; the first, "
            f"'{first['id']}': {first['reason']}. Choose other settings, or another preset."
        )
    shortest = min(long, key=lambda row: int(row["tokens"]))
    return (
        f"all {n} rows are longer than the model's context of {context} tokens; the "
        f"shortest, '{shortest['id']}', has {shortest['tokens']}. Use a model with a longer "
        "context, or shorter prompts."
    )


def _n_spaces(whole: str, completion: str) -> int:
    """Spaces right before what is visible of the completion."""
    before = whole.rstrip().removesuffix(completion.strip())
    return len(before) - len(before.rstrip(" "))
