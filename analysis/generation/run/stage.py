"""The stage: texts of all configurations in one batch, then metrics, choice and folder."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int64

from actcache.analysis.generation.config import SteerConfig
from actcache.analysis.generation.folder import (
    Generations,
    TextLog,
    require_writable,
    writing,
)
from actcache.analysis.generation.run.finish import finish
from actcache.analysis.generation.run.measures import Measures, prepare_measures
from actcache.analysis.generation.run.plan import (
    GenerationPlan,
    Text,
    noise_stream,
)
from actcache.analysis.generation.run.source_plan import plan_generation
from actcache.analysis.generation.texts import UNSTEERED_AGAIN, GeneratedText
from actcache.build.forecast import TimeEstimate, scaled, why_not_loaded
from actcache.engine.model import LanguageModel
from actcache.progress import SILENT, Progress
from actcache.settings import check_names
from actcache.steering.loop import check_generation, generate
from actcache.steering.sampling import Continuation, Request
from actcache.steering.scoring import score_texts

if TYPE_CHECKING:
    from actcache.steering.steering import AnySteering

CHUNK_BATCHES = 4
"""Texts are written to disk after so many full batches; a kill loses no more."""

CHECKED = 64
"""Texts, evenly spaced, of which three are compared with plain passes before a run."""

AGAIN_SHARE = 3
"""The unsteered texts are written once more in batches that are so many times smaller."""


def generate_steered(
    source: str | Path,
    out: str | Path,
    *,
    config: SteerConfig | None = None,
    data: Sequence[str | Path] = (),
    prompts: Sequence[str] = (),
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress = SILENT,
    device: str = "auto",
    place: "dict[str, Any] | None" = None,
    **settings: Any,
) -> Generations:
    """Write texts under a grid of steerings, choose a strength; the same as `actcache steer`.

    Args:
        source: what `analyze` left; or a steering file.
        out: the folder GEN; made if it is not there.
        config: the settings; by default those of `SteerConfig`.
        data: files of rows whose prompts are continued; by default the validation and test rows of
            the store.
        prompts: prompts, as text.
        resume: finish an interrupted run of the same settings.
        overwrite: remove earlier texts in the folder first.
        progress: shows the texts that are written.
        device: a torch device, or `auto`.
        place: keywords of `plan_generation`: where store and model are, if they were moved.
        settings: fields of `SteerConfig`, for example `strength=(-0.5, 0.5)`.

    Raises:
        ActcacheError: settings, rows, directions or model cannot be used; or the folder holds texts
            of other settings.

    Example:
        texts = generate_steered("out", "texts", behavior=["tidy"], max_new=8)
        texts.summary.methods[0].choice.strength
    """
    check_names(SteerConfig, settings)
    config = SteerConfig(**settings) if config is None else replace(config, **settings)
    plan = plan_generation(
        source, config, data=data, prompts=prompts, device=device, **(place or {})
    )
    return run_plan(plan, Path(out), resume=resume, overwrite=overwrite, progress=progress)


def run_plan(
    plan: GenerationPlan,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    save: str | Path | None = None,
    progress: Progress = SILENT,
) -> Generations:
    """Run a plan and write its folder; see `generate_steered`."""
    measures = prepare_measures(plan)
    settings = {**plan.settings, **measures.settings}
    require_writable(out, settings, resume=resume, overwrite=overwrite)
    texts = Generations(out)
    if resume and not overwrite and texts.complete:
        return texts
    measures.require_key()
    model = plan.load()
    configurations = {run.digest: run.about for run in plan.configurations}
    with writing(out, settings, configurations, resume=resume, overwrite=overwrite) as log:
        _write_texts(model, plan, measures, log, progress)
        finish(out, model, plan, log.texts, save=save)
    return Generations(out)


def _write_texts(
    model: LanguageModel,
    plan: GenerationPlan,
    measures: Measures,
    log: TextLog,
    progress: Progress,
) -> None:
    """Write what the log does not hold yet, chunk by chunk."""
    waiting = [
        text for text in plan.texts() if (text[1].digest, text[0].id, text[2]) not in log.written
    ]
    if not waiting:
        return
    check_generation(model, _requests(waiting[:: max(len(waiting) // CHECKED, 1)]))
    measures.tell_cost(waiting, progress, max_new=plan.config.max_new)
    with progress.steps("texts", len(waiting)) as advance:
        for chunk in _chunks(waiting, plan.config):
            log.append(_write_chunk(model, plan, measures, chunk, advance))


def _write_chunk(
    model: LanguageModel,
    plan: GenerationPlan,
    measures: Measures,
    chunk: Sequence[Text],
    advance: Callable[[int], None],
) -> list[GeneratedText]:
    config = plan.config
    continuations: dict[int, Continuation] = {}
    again = [text[1].about.method == UNSTEERED_AGAIN for text in chunk]
    for small in (False, True):
        places = [i for i, is_again in enumerate(again) if is_again == small]
        written = generate(
            model,
            _requests([chunk[i] for i in places]),
            max_new=config.max_new,
            end_tokens=plan.end_tokens,
            temperature=config.temperature,
            seed=config.seed,
            batch_tokens=max(config.batch_tokens // (AGAIN_SHARE if small else 1), 1),
            on_done=lambda _number, _text: advance(1),
        )
        continuations |= dict(zip(places, written, strict=True))
    in_order = [continuations[i] for i in range(len(chunk))]
    scores = score_texts(
        model,
        [row.tokens for row, _, _ in chunk],
        [continuation.tokens for continuation in in_order],
        read_layers=measures.read_layers,
        batch_tokens=config.batch_tokens,
    )
    return measures.measure(chunk, in_order, scores)


def forecast_generation(plan: GenerationPlan) -> dict[str, Any]:
    """Estimate what a plan costs: texts, tokens, seconds; nothing is written."""
    prepare_measures(plan)
    texts = list(plan.texts())
    costs = [len(row.tokens) + plan.config.max_new for row, _, _ in texts]
    refusal = why_not_loaded(plan.model.name, revision=plan.model.revision)
    if refusal is not None:
        estimate = TimeEstimate(None, refusal)
    else:
        start = time.perf_counter()
        model = plan.load()
        loading = time.perf_counter() - start

        def run(places: Int64[np.ndarray, " _"]) -> None:
            generate(
                model,
                _requests([texts[place] for place in places]),
                max_new=plan.config.max_new,
                end_tokens=plan.end_tokens,
                batch_tokens=plan.config.batch_tokens,
            )

        estimate = scaled(
            costs,
            costs,
            budget=plan.config.batch_tokens,
            run=run,
            place=str(model.device),
            loading=loading,
        )
    return {**plan.facts, "estimated seconds": estimate.seconds, "estimate": estimate.basis}


def _requests(texts: Iterable[Text]) -> list[Request]:
    """Make requests; a configuration's steering of several rows is one object where it can be."""
    shared: dict[str, AnySteering] = {}
    requests = []
    for row, run, sample in texts:
        steering = run.steering(row)
        if steering is not None:
            steering = shared.setdefault(steering.digest, steering)
        requests.append(
            Request(prompt=row.tokens, steering=steering, noise=noise_stream(row, sample))
        )
    return requests


def _chunks(texts: Sequence[Text], config: SteerConfig) -> Iterator[list[Text]]:
    budget = CHUNK_BATCHES * config.batch_tokens
    chunk: list[Text] = []
    cost = 0
    for text in texts:
        cost += len(text[0].tokens) + config.max_new
        if chunk and cost > budget:
            yield chunk
            chunk, cost = [], len(text[0].tokens) + config.max_new
        chunk.append(text)
    yield chunk
