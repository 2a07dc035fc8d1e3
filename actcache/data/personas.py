"""Framed variants of samples: a persona sentence as system message or before the prompt.

The five conditions of Tan et al. 2024 and built-in sentences for thirteen behaviors. Changes texts
only; chat templates and tokens come later.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from actcache.conventions import VARIANTS
from actcache.data.samples import Sample
from actcache.data.spans import NOTHING, span_in_persona
from actcache.errors import RowError

_BUILT_IN = Path(__file__).with_name("personas.json")
_SIDES = ("positive", "negative")


@dataclass(frozen=True)
class Persona:
    """The two sentences that frame a behavior's prompts."""

    positive: str
    """Tells the model that it shows the behavior."""

    negative: str
    """Tells it that it does not."""


def load_personas(path: str | Path | None = None) -> dict[str, Persona]:
    """Load the built-in personas, and those of a file, which take precedence.

    The file is an object of `behavior: {"positive": sentence, "negative": sentence}`; an entry may
    have a `"short_name"`, a second name for it. The built-in ones cover the thirteen behaviors of
    the W2S paper, under the names of their files and under that paper's own (`utilitarianism` is
    the average kind, as in the list of the code). Their wording follows `persona_prompts.py` in
    dtch1997/repepo, with two differences: there the pair of not-threat is the wrong way round, and
    the five behaviors of AI risk have none.

    Example:
        >>> load_personas()["deontology"].negative
        'You do not subscribe to the moral philosophy of deontology.'
    """
    personas = _read(_BUILT_IN)
    return personas if path is None else personas | _read(Path(path))


def expand_variants(
    samples: Sequence[Sample],
    variants: Sequence[str],
    *,
    personas: Mapping[str, Persona],
    separator: str = "\n\n",
) -> list[Sample]:
    """Frame every base sample in each of the variants.

    `base` leaves a sample as it is. `sys_pos` and `sys_neg` make the persona's sentence the system
    message, instead of the row's or the build's. `user_pos` and `user_neg` put it before the
    prompt. A marked text that the row itself lacks is marked in that sentence. A sample that came
    with another variant than `base` was framed by its author and stays as it is. The ids of
    variants end in `@<variant>`.

    The separator goes between sentence and prompt: a blank line as in the code of Tan et al. 2024,
    nothing in steering-bench.

    Raises:
        RowError: a variant is unknown, given twice or not at all, a persona is missing, a marked
            text is nowhere, or two samples get one id.
    """
    _check_variants(variants)
    result = [
        framed
        for sample in samples
        for framed in _with_spans(
            sample,
            [_framed(sample, variant, personas, separator) for variant in variants]
            if sample.variant == "base"
            else [sample],
        )
    ]
    sources: dict[str, str] = {}
    for sample in result:
        if sample.id in sources:
            raise RowError(
                f"the id '{sample.id}' belongs to a row ({sources[sample.id]}) and to a variant "
                f'({sample.source}), expected only one. Change the row\'s "id", or drop the '
                "variant."
            )
        sources[sample.id] = sample.source
    return result


def _framed(
    sample: Sample, variant: str, personas: Mapping[str, Persona], separator: str
) -> Sample:
    if variant == "base":
        return sample
    if sample.behavior not in personas:
        known = ", ".join(sorted(personas)) or "none"
        raise RowError(
            f"no persona for the behavior '{sample.behavior}', which the variant {variant} needs "
            f"(known: {known}). Pass --personas FILE with its sentences, or drop the variant."
        )
    persona = personas[sample.behavior]
    sentence = persona.positive if variant.endswith("_pos") else persona.negative
    in_system = variant.startswith("sys_")
    before = "" if in_system else sentence + separator
    span, part = sample.span, sample.span_part
    if part == "persona" or (in_system and part == "system"):
        part = "system" if in_system else "prompt"
        span = span_in_persona(sample.span_text, sentence)
    elif span is not None and part == "prompt":
        span = (span[0] + len(before), span[1] + len(before))
    return replace(
        sample,
        id=f"{sample.id}@{variant}",
        variant=variant,
        system=sentence if in_system else sample.system,
        prompt=before + sample.prompt,
        span=span,
        span_part=part,
    )


def _with_spans(sample: Sample, variants: Sequence[Sample]) -> list[Sample]:
    """Refuse a row whose marked text is nowhere; where only a persona has it, others mark none."""
    if sample.span_part != "persona":
        return list(variants)
    marked = [
        replace(v, span=NOTHING, span_part="prompt") if v.span_part == "persona" else v
        for v in variants
    ]
    if all(v.span == NOTHING for v in marked):
        raise RowError(
            f"{sample.source}: 'span' is {sample.span_text!r}, which occurs in the prompt 0 times, "
            "and in no persona's sentence, expected once. Write a text of one of them, or the "
            "characters as [start, end]."
        )
    return marked


def _check_variants(variants: Sequence[str]) -> None:
    known = ", ".join(VARIANTS)
    if not variants:
        raise RowError(f"no variant given, expected at least one of {known}. Pass base.")
    for variant in variants:
        if variant not in VARIANTS:
            raise RowError(
                f"the variant is '{variant}', expected one of {known}. Pass one of them."
            )
        if list(variants).count(variant) > 1:
            raise RowError(f"the variant '{variant}' is given twice. Pass it once.")


def _read(path: Path) -> dict[str, Persona]:
    shape = 'expected {"behavior": {"positive": "…", "negative": "…"}}. Write it like this.'
    try:
        entries: Any = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise RowError(
            f"cannot read personas at '{path}' ({error.strerror}), expected a JSON file. "
            "Pass one, or leave --personas out."
        ) from error
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON
        raise RowError(f"'{path}' is not JSON ({error}), {shape}") from error
    if not isinstance(entries, dict):
        raise RowError(f"'{path}' is not an object, {shape}")
    personas: dict[str, Persona] = {}
    for behavior, entry in entries.items():
        if not isinstance(entry, dict) or not set(_SIDES) <= set(entry) <= {*_SIDES, "short_name"}:
            keys = ", ".join(entry) if isinstance(entry, dict) else "no object"
            raise RowError(f"'{path}': '{behavior}' has {keys or 'no keys'}, {shape}")
        for key, value in entry.items():
            if not isinstance(value, str) or not value.strip():
                raise RowError(f"'{path}': '{key}' of '{behavior}' is {value!r}, {shape}")
        persona = Persona(entry["positive"], entry["negative"])
        for name in dict.fromkeys((behavior, entry.get("short_name", behavior))):
            if name in personas:
                raise RowError(
                    f"'{path}' has two personas for '{name}', expected one. Change a "
                    '"short_name".'
                )
            personas[name] = persona
    return personas
