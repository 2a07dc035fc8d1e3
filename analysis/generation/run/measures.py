"""What each text of a run is measured by: form, phrases, target; read before weights are loaded."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from actcache.analysis.generation.config import SteerConfig
from actcache.analysis.generation.judge import (
    Judge,
    JudgeCost,
    JudgedText,
    judge_texts,
    load_template,
    require_key,
)
from actcache.analysis.generation.metrics import TextRules, measure_text
from actcache.analysis.generation.phrases import DEFAULT, load_phrases
from actcache.analysis.generation.run.plan import GenerationPlan, Text
from actcache.analysis.generation.run.rows import PromptRow
from actcache.analysis.generation.targets import ReadBack, Target, compile_form, parse_target
from actcache.analysis.generation.texts import GeneratedText
from actcache.encoders.connection import Endpoint, endpoint_of
from actcache.errors import MismatchError
from actcache.progress import Progress, Silent
from actcache.steering.sampling import Continuation
from actcache.steering.scoring import TextScores

MOST_COMPLETIONS = 8
"""Rows with more different completions than these have no form by default."""


@dataclass(frozen=True, kw_only=True)
class Measures:
    """The rules of a run's metrics, and its target."""

    rules: TextRules
    target: Target
    read_back: Mapping[str, ReadBack]
    """By behavior; empty unless it is the target."""

    judge: Judge | None
    verdicts: Path | None
    """The judge's paid answers; None is the default file."""

    decode: Callable[[Sequence[int]], str]

    @property
    def read_layers(self) -> tuple[int, ...]:
        """Layers whose residuals the target reads, each once."""
        return tuple(sorted({read_back.layer for read_back in self.read_back.values()}))

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the metrics beside the run's settings: the contents of files."""
        return {
            "form": None if self.rules.form is None else self.rules.form.pattern,
            "phrases": list(self.rules.phrases),
            "words": list(self.target.words),
            "judge prompt": None if self.judge is None else self.judge.template,
        }

    def measure(
        self,
        texts: Sequence[Text],
        continuations: Sequence[Continuation],
        scores: TextScores,
    ) -> list[GeneratedText]:
        """Measure texts that were written; a judge is asked about all of them at once."""
        decoded = [self.decode(continuation.tokens) for continuation in continuations]
        verdicts = self._verdicts([row for row, _, _ in texts], decoded)
        measured = []
        for i, (row, run, sample) in enumerate(texts):
            written = continuations[i]
            metrics = measure_text(
                decoded[i], n=len(written.tokens), ended=written.ended, rules=self.rules
            )
            read = None
            if (where := self.read_back.get(row.behavior)) is not None:
                place = self.read_layers.index(where.layer)
                read = float(where.project(scores.mean_residual[i, place : place + 1])[0])
            measured.append(
                GeneratedText(
                    **asdict(metrics),
                    id=row.id,
                    behavior=row.behavior,
                    split=row.split,
                    configuration=run.digest,
                    sample=sample,
                    text=decoded[i],
                    tokens=written.tokens,
                    nll_steered=_number(written.nll_steered),
                    nll_unsteered=_number(scores.nll_unsteered[i]),
                    target=self.target.score(
                        decoded[i],
                        refusal=metrics.refusal,
                        read_back=read,
                        verdict=verdicts[i],
                        completions=row.completions,
                    ),
                )
            )
        return measured

    def tell_cost(self, texts: Sequence[Text], progress: Progress, *, max_new: int) -> None:
        """Say what a judge will cost at most, before anything is generated."""
        if self.judge is None:
            return
        n_bytes = sum(
            len(self.judge.template.encode()) + len(row.prompt.encode()) for row, _, _ in texts
        )
        progress.cost(
            JudgeCost(
                service=self.judge.service,
                n_new=len(texts),
                n_cached=0,
                tokens=n_bytes // 4 + max_new * len(texts),
            )
        )

    def require_key(self) -> None:
        """Refuse a judge whose service needs a key that is not set."""
        if self.judge is not None:
            require_key(self.judge.service)

    def _verdicts(self, rows: Sequence[PromptRow], texts: Sequence[str]) -> Sequence[float | None]:
        if self.judge is None:
            return [None] * len(texts)
        questions = [
            JudgedText(prompt=row.prompt, text=text, behavior=row.behavior)
            for row, text in zip(rows, texts, strict=True)
        ]
        return judge_texts(questions, self.judge, cache=self.verdicts, progress=Silent()).values


def prepare_measures(plan: GenerationPlan) -> Measures:
    """Read the target, the form and the phrases of a plan's settings.

    Raises:
        ActcacheError: a regular expression does not compile, a file holds no phrases, or the judge
            has no key.
    """
    config = plan.config
    target = parse_target(config.target)
    if target.kind == "answer" and not all(row.completions for row in plan.rows):
        raise MismatchError(
            "the target is answer, but rows have no completions, expected a positive and a "
            "negative one. Pass another --target, such as read_back."
        )
    phrases = load_phrases(config.phrases or DEFAULT)
    form = form_of_rows(plan.rows) if config.form is None else config.form
    return Measures(
        rules=TextRules(
            form=compile_form(form) if form else None,
            scripts=tuple(config.scripts),
            phrases=phrases.phrases,
            within=config.within,
        ),
        target=target,
        read_back=plan.read_back,
        judge=_judge(config),
        verdicts=None if config.verdicts is None else Path(config.verdicts),
        decode=lambda tokens: str(plan.model.tokenizer.decode(tokens, skip_special_tokens=True)),
    )


def form_of_rows(rows: Sequence[PromptRow]) -> str | None:
    """Make the expression of the rows' completions, where all have some and they are few."""
    completions = [row.completions for row in rows]
    if not all(completions):
        return None
    distinct = sorted({text.strip() for pair in completions if pair for text in pair})
    if not 0 < len(distinct) <= MOST_COMPLETIONS:
        return None
    return "|".join(re.escape(text) for text in distinct)


def _judge(config: SteerConfig) -> Judge | None:
    if config.judge is None:
        return None
    service = Endpoint(endpoint=endpoint_of(config.base_url), model=config.judge)
    if config.judge_prompt is None:
        return Judge(service=service)
    return Judge(service=service, template=load_template(Path(config.judge_prompt)))


def _number(value: float) -> float | None:
    """JSON has neither NaN nor infinity."""
    return float(value) if math.isfinite(value) else None
