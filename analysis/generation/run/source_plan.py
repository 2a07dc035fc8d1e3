"""From a results folder or a steering file to the plan of a run."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from actcache.analysis.directions.difference_of_means import unit
from actcache.analysis.generation.config import SteerConfig
from actcache.analysis.generation.methods.candidate import OPERATOR_UNITS
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
from actcache.analysis.generation.targets import ReadBack, read_backs
from actcache.analysis.results import Results, open_results
from actcache.errors import ActcacheError, MismatchError, StoreNotFoundError
from actcache.identity import require_same
from actcache.prompts.render import Rendering
from actcache.steering.steering import PLANE_OPERATORS, AnySteering, Steering
from actcache.store.store import Store, open_store

READ_BACK = "read_back"

FILE = "file"
"""Method of a steering that was read from a file."""

AROUND = (-1.0, -0.5, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
"""A file's multiplier is tried at these times its own."""


@dataclass(frozen=True, kw_only=True)
class FileWay:
    """A steering of a file, or its random control, as a way of steering."""

    base: AnySteering
    method: str
    behavior: str
    unit: str
    identity: float | None
    control: bool
    selection: str
    grid: tuple[float, ...] | None
    """Strengths to try by default; None for those of the unit."""

    notes: tuple[str, ...] = ()

    def steering(self, row: int | None, strength: float) -> AnySteering:
        """Set the strength; of a sum, multiply all of its strengths by it."""
        if len(self.base.parts) == 1:
            return self.base.at(strength)
        return self.base * strength


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
        trust_remote_code: run code that comes with the checkpoint.

    Raises:
        ActcacheError: settings, rows, directions or model cannot be used; says what to do.
    """
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
    return _plan_file(path, steering, model_source, config, data, prompts)


def _plan_results(
    results: Results,
    config: SteerConfig,
    data: Sequence[str | Path],
    prompts: Sequence[str],
    *,
    store_path: str | Path | None,
    model: str | None,
    trust_remote_code: bool,
) -> GenerationPlan:
    from actcache.analysis.generation.methods import candidates

    store = _store_of(results, store_path)
    behaviors = _behaviors(config, list(results.directions), str(results.path))
    _require_layers(config, store.n_layers)
    source = store_source(store, name=model, trust_remote_code=trust_remote_code)
    rows = _given_rows(data, prompts, behaviors, source, config)
    if not rows:
        labels = results.summary.labels
        rows = store_rows(store, behaviors, labels=labels, limit=config.limit)
    behaviors = [name for name in behaviors if any(row.behavior == name for row in rows)]
    ways = candidates(
        results,
        store,
        methods=config.method,
        behaviors=behaviors,
        layers=config.layer_numbers or config.layers,
        tokens=config.tokens,
        window=config.window_steps,
        in_store=all(row.number is not None for row in rows),
        seed=config.seed,
        model=source.load,
    )
    return _finished(
        GenerationPlan(
            config=config,
            source=str(results.path),
            model=source,
            rows=tuple(rows),
            ways=tuple(ways),
            configurations=(),
            end_tokens=source.end_tokens(config.end),
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
    steering = _with_settings(steering, config)
    layers = [layer for part in steering.parts for layer in part.layers]
    for layer in layers:
        _require_layer(layer, model.shape.num_hidden_layers)
    way = _file_way(steering, behavior)
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
            rows=tuple(rows),
            ways=(way, *((control,) if "random" in config.method else ())),
            configurations=(),
            end_tokens=model.end_tokens(config.end),
            read_back={behavior: _read_back(steering)},
        )
    )


def _finished(plan: GenerationPlan) -> GenerationPlan:
    require_usable(plan.rows, plan.ways, plan.model, plan.config)
    return replace(plan, configurations=plan_configurations(plan.ways, plan.rows, plan.config))


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


def _with_settings(steering: AnySteering, config: SteerConfig) -> AnySteering:
    """Steer other tokens or steps than the file says, where that was asked for."""
    changes: dict[str, Any] = {}
    if config.tokens is not None:
        changes["tokens"] = config.tokens
    if config.window is not None:
        changes["window"] = config.window_steps
    parts = [replace(part, **changes) for part in steering.parts]
    return steering if not changes else _sum(parts)


def _file_way(steering: AnySteering, behavior: str) -> FileWay:
    parts = steering.parts
    if len(parts) > 1:
        return FileWay(
            base=steering,
            method=FILE,
            behavior=behavior,
            unit="multiplier",
            identity=0.0,
            control=False,
            selection="",
            grid=AROUND,
        )
    part = parts[0]
    unit = OPERATOR_UNITS[part.operator]
    around = None
    if unit == "multiplier" and part.strength:
        around = tuple(part.strength * factor for factor in AROUND)
    return FileWay(
        base=part,
        method=FILE,
        behavior=behavior,
        unit=unit,
        identity=part.identity[part.operator],
        control=False,
        selection=",".join(str(layer) for layer in part.layers),
        grid=around,
    )


def random_like(steering: AnySteering, seed: int) -> AnySteering:
    """Replace each vector by a random one of equal norm, each plane by a random plane."""
    rng = np.random.default_rng(seed)
    return _sum([_random_part(part, rng) for part in steering.parts])


def _random_part(part: Steering, rng: np.random.Generator) -> Steering:
    shape = part.vectors.shape
    drawn = rng.standard_normal(shape)
    if part.operator in PLANE_OPERATORS:
        basis = np.linalg.qr(drawn.transpose(0, 2, 1))[0]
        vectors = basis.transpose(0, 2, 1)
    else:
        norms = np.linalg.norm(part.vectors.astype(np.float64), axis=-1, keepdims=True)
        vectors = drawn / np.linalg.norm(drawn, axis=-1, keepdims=True) * norms
    return replace(part, vectors=vectors.astype(np.float32), source=None)


def _sum(parts: list[Steering]) -> AnySteering:
    total: AnySteering = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _read_back(steering: AnySteering) -> ReadBack:
    """Read at the deepest layer that is steered, along its (first) vector."""
    part = max(steering.parts, key=lambda part: part.layers[-1])
    vector = part.vectors[-1, 0] if part.operator in PLANE_OPERATORS else part.vectors[-1]
    return ReadBack(layer=part.layers[-1], direction=unit(vector))
