"""From a results folder or a steering file to the plan of a run."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from actcache.analysis.generation.config import SteerConfig
from actcache.analysis.generation.methods import candidates
from actcache.analysis.generation.methods.registry import ROTATIONS
from actcache.analysis.generation.run.file_way import (
    file_way,
    random_like,
    read_back_of,
    with_settings,
)
from actcache.analysis.generation.run.plan import (
    GenerationPlan,
    plan_configurations,
    require_usable,
)
from actcache.analysis.generation.run.rows import PromptRow, data_rows, prompt_rows, store_rows
from actcache.analysis.generation.run.sources import (
    ModelSource,
    open_steering,
    steering_source,
    store_source,
)
from actcache.analysis.generation.summary import SiteScores
from actcache.analysis.generation.targets import read_backs
from actcache.analysis.results import Results, open_results
from actcache.errors import ActcacheError, MismatchError, StoreNotFoundError
from actcache.identity import require_same
from actcache.prompts.render import Rendering
from actcache.steering.steering import AnySteering
from actcache.store.store import Store, open_store

READ_BACK = "read_back"


def plan_generation(
    source: str | Path,
    config: SteerConfig,
    *,
    data: Sequence[str | Path] = (),
    prompts: Sequence[str] = (),
    store: str | Path | None = None,
    model: str | None = None,
    template: str = "auto",
    system: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    device_map: str | None = None,
    trust_remote_code: bool = False,
) -> GenerationPlan:
    """Plan the texts of a results folder or a steering file; loads no weights, writes nothing.

    Args:
        source: what `analyze` left; or a steering file, or GEN of an earlier run.
        config: the settings.
        data: files of rows whose prompts are continued; by default the store's own rows.
        prompts: prompts, as text.
        store: where the store is, if it was moved.
        model: where the model is, if it was moved.
        template: of a steering file's prompts: auto, none or a Jinja file. Those of a results
            folder are rendered as its store's.
        system: system message of a steering file's prompts.
        dtype: of a steering file's model, if it does not say.
        device: where the model will run: a torch device, or `auto`.
        device_map: spread the blocks over several devices, as Hugging Face does.
        trust_remote_code: run code that comes with the checkpoint.

    Raises:
        ActcacheError: settings, rows, directions or model cannot be used; says what to do.
    """
    place = {"device": device, "device_map": device_map}
    path = Path(source)
    if (path / "summary.json").is_file() and not (path / "configurations.json").is_file():
        config.require_one_unit()
        return _plan_results(
            open_results(path),
            config,
            data,
            prompts,
            store_path=store,
            model=model,
            place=place,
            trust_remote_code=trust_remote_code,
        )
    if not path.exists():
        raise StoreNotFoundError(
            f"no results and no steering at '{source}'. Make results with: actcache analyze "
            f"STORE.zarr -o {source}"
        )
    steering = open_steering(path)
    model_source = steering_source(
        steering.parts[0].source,
        name=model,
        dtype=dtype,
        rendering=Rendering(template=template, system=system),
        trust_remote_code=trust_remote_code,
    )
    return _plan_file(path, steering, model_source, config, data, prompts, place)


def _plan_results(
    results: Results,
    config: SteerConfig,
    data: Sequence[str | Path],
    prompts: Sequence[str],
    *,
    store_path: str | Path | None,
    model: str | None,
    place: dict[str, Any],
    trust_remote_code: bool,
) -> GenerationPlan:
    store = _store_of(results, store_path)
    behaviors = _behaviors(config, list(results.directions), str(results.path))
    _require_layers(config, store.n_layers)
    source = store_source(store, name=model, trust_remote_code=trust_remote_code)
    rows = _given_rows(data, prompts, behaviors, source, config)
    if not rows:
        labels = results.summary.labels
        rows = store_rows(store, behaviors, labels=labels, limit=config.limit)
    behaviors = [name for name in behaviors if any(row.behavior == name for row in rows)]
    load = cache(partial(source.load, **place))
    ways = candidates(
        results,
        store,
        methods=config.method,
        behaviors=behaviors,
        layers=config.layer_numbers or config.layers,
        tokens=config.tokens,
        window=config.window_steps,
        contrast=config.contrast_texts,
        in_store=all(row.number is not None for row in rows),
        seed=config.seed,
        model=load,
    )
    return _finished(
        GenerationPlan(
            config=config,
            source=str(results.path),
            model=source,
            load=load,
            rows=tuple(rows),
            ways=tuple(ways),
            configurations=(),
            end_tokens=source.end_tokens(config.end),
            sites=_sites(results, behaviors) if set(config.method) & set(ROTATIONS) else None,
            read_back=read_backs(results, behaviors) if config.target == READ_BACK else {},
        )
    )


def _plan_file(
    path: Path,
    steering: AnySteering,
    model: ModelSource,
    config: SteerConfig,
    data: Sequence[str | Path],
    prompts: Sequence[str],
    place: dict[str, Any],
) -> GenerationPlan:
    about = steering.parts[0].source
    behavior = (about.behavior if about is not None else None) or path.stem
    if config.behavior is not None and list(config.behavior) != [behavior]:
        raise MismatchError(
            f"behavior is {list(config.behavior)}, but '{path}' is a steering of '{behavior}'. "
            "Drop --behavior."
        )
    rows = _given_rows(data, prompts, [behavior], model, config)
    if not rows:
        raise ActcacheError(
            f"'{path}' brings no prompts, expected some to continue. Pass --data ROWS or --prompt "
            "TEXT."
        )
    steering = with_settings(steering, config)
    layers = [layer for part in steering.parts for layer in part.layers]
    for layer in layers:
        _require_layer(layer, model.shape.num_hidden_layers)
    way = file_way(steering, behavior)
    config.require_unit(way.unit, str(path))
    control = replace(
        way,
        base=random_like(steering, config.seed),
        method="random",
        control=True,
    )
    return _finished(
        GenerationPlan(
            config=config,
            source=str(path),
            model=model,
            load=cache(partial(model.load, **place)),
            rows=tuple(rows),
            ways=(way, *((control,) if "random" in config.method else ())),
            configurations=(),
            end_tokens=model.end_tokens(config.end),
            read_back={behavior: read_back_of(steering)},
        )
    )


def _finished(plan: GenerationPlan) -> GenerationPlan:
    require_usable(plan.rows, plan.ways, plan.model, plan.config)
    return replace(plan, configurations=plan_configurations(plan.ways, plan.rows, plan.config))


def _sites(results: Results, behaviors: Sequence[str]) -> dict[str, tuple[SiteScores, ...]] | None:
    """What the stage layers found at the norm outputs, on train rows."""
    planes = results.summary.planes or {}
    return {
        behavior: tuple(
            SiteScores(
                site=site,
                layer=layer,
                mean_positive=float(scores.class_mean[0, k]),
                mean_negative=float(scores.class_mean[1, k]),
                discriminative=bool(scores.discriminative[k]),
            )
            for k, (site, layer) in enumerate(zip(scores.sites, scores.layers, strict=True))
        )
        for behavior in behaviors
        if (scores := planes.get(behavior)) is not None
    } or None


def _store_of(results: Results, path: str | Path | None) -> Store:
    recorded = results.summary.store
    try:
        store = open_store(path or recorded.path)
    except StoreNotFoundError:
        raise StoreNotFoundError(
            f"the store of '{results.path}' is not at '{path or recorded.path}', expected it for "
            "prompts and residuals. Pass --store with its path."
        ) from None
    require_same(
        store.provenance.get("data_sha256"),
        recorded.provenance.get("data_sha256"),
        what=f"the rows of '{store.path}' and those of the results in '{results.path}'",
        remedy="Pass --store with the store that was analyzed.",
    )
    return store


def _behaviors(config: SteerConfig, known: list[str], where: str) -> list[str]:
    for name in config.behavior or ():
        if name not in known:
            raise MismatchError(
                f"'{where}' has no direction of '{name}', expected some of {', '.join(known)}. "
                "Pass one of them with --behavior."
            )
    return list(dict.fromkeys(config.behavior or known))


def _require_layers(config: SteerConfig, n_layers: int) -> None:
    for layer in config.layer_numbers or ():
        _require_layer(layer, n_layers)


def _require_layer(layer: int, n_layers: int) -> None:
    if layer >= n_layers:
        raise MismatchError(
            f"layer {layer} is to be steered, the model has layers 0 to {n_layers - 1}. Pass some "
            "of these."
        )


def _given_rows(
    data: Sequence[str | Path],
    prompts: Sequence[str],
    behaviors: Sequence[str],
    model: ModelSource,
    config: SteerConfig,
) -> list[PromptRow]:
    rows: list[PromptRow] = []
    if data:
        rows += data_rows(data, behaviors, model.renderer, limit=config.limit, seed=config.seed)
    return rows + prompt_rows(prompts, behaviors, model.renderer)
