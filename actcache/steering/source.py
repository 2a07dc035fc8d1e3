"""Where a steering comes from: model, data, method, and how its strength was chosen."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, no_type_check

import numpy as np
from jaxtyping import Float32

from actcache.errors import FormatError, MismatchError, StoreNotFoundError
from actcache.identity import IDENTITY
from actcache.steering.checks import (
    check_integer,
    check_keys,
    check_layers,
    check_number,
    check_text,
    refuse,
    set_fields,
)

if TYPE_CHECKING:  # imports torch
    from actcache.engine.model import LanguageModel

    AnyModel = LanguageModel | Mapping[str, Any]

METHOD = "difference_of_means"
"""Name of the directions in directions.safetensors (contract of `actcache analyze`)."""


@no_type_check  # users' values: `__post_init__` refuses them, also under a type checker
@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How the strength was chosen."""

    metric: str
    """What was largest, such as `read_back`."""

    grid: tuple[float, ...]
    """Strengths that were tried."""

    value: float
    """The chosen one."""

    split: str
    """Rows that it was chosen on."""

    def __post_init__(self) -> None:
        for name in ("metric", "split"):
            if check_text(f"calibration.{name}", getattr(self, name)) is None:
                refuse(f"calibration.{name}", "None", "text", "Pass it.")
        if not isinstance(self.grid, tuple | list):
            refuse("calibration.grid", repr(self.grid), "several numbers", "Pass a tuple.")
        grid = tuple(check_number("calibration.grid", strength) for strength in self.grid)
        set_fields(self, grid=grid, value=check_number("calibration.value", self.value))


@no_type_check  # users' values: `__post_init__` refuses them, also under a type checker
@dataclass(frozen=True, kw_only=True)
class SteeringSource:
    """Where vectors and strength come from; None is not known.

    The model's fields are those of `actcache.identity.IDENTITY`, as a store records them.
    """

    model: str | None = None
    """Hub id or folder."""

    revision: str | None = None
    """Commit on the Hub."""

    family: str | None = None
    n_layers: int | None = None
    d_model: int | None = None
    dtype: str | None = None
    weights_sha256: str | None = None
    tokenizer_sha256: str | None = None
    template_sha256: str | None = None

    store_sha256: str | None = None
    """`Store.digest`."""

    data_sha256: str | None = None
    """Digest of the store's rows."""

    behavior: str | None = None
    split: str | None = None
    """Rows that the vectors are computed of, such as `train`."""

    method: str | None = None
    """Such as `difference_of_means`."""

    calibration: Calibration | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in ("n_layers", "d_model"):
                if value is not None and check_integer(f"source.{field.name}", value) < 1:
                    refuse(f"source.{field.name}", value, "1 or more", "Pass the model's.")
            elif field.name != "calibration":
                check_text(f"source.{field.name}", value)
            elif not isinstance(value, Calibration | None):
                refuse("source.calibration", repr(value), "a Calibration or None", "Pass one.")

    def document(self) -> dict[str, Any]:
        """Write it as JSON has it."""
        return asdict(self)

    @classmethod
    def from_document(cls, document: Any) -> "SteeringSource":
        """Read what `document` gives; refuses what it would not write."""
        values = dict(check_keys("source", document, [field.name for field in fields(cls)]))
        if values["calibration"] is not None:
            names = [field.name for field in fields(Calibration)]
            calibration = check_keys("source.calibration", values["calibration"], names)
            values["calibration"] = Calibration(**calibration)
        return cls(**values)

    @classmethod
    def from_provenance(cls, provenance: Mapping[str, Any], **fields: Any) -> "SteeringSource":
        """Take the model, tokenizer and data of a store's provenance; other fields as given.

        An imported store may not say all of them.
        """
        model, tokenizer = (
            part if isinstance(part := provenance.get(name), dict) else {}
            for name in ("model", "tokenizer")
        )
        template = tokenizer.get("template")
        return cls(
            model=model.get("name"),
            revision=model.get("commit"),
            **{name: model.get(name) for name in IDENTITY},
            tokenizer_sha256=tokenizer.get("sha256"),
            template_sha256=None if template is None else template_digest(template),
            data_sha256=provenance.get("data_sha256"),
            **fields,
        )


def require_model(
    source: SteeringSource,
    model: "AnyModel",
    *,
    last_layer: int,
    where: str,
    other_model: bool,
) -> None:
    """Refuse another model; errors and arguments of `AnySteering.require_model`."""
    for name in ("d_model", *IDENTITY, "tokenizer_sha256", "template_sha256"):
        stored = getattr(source, name)
        if stored is None or (other_model and name != "d_model"):
            continue
        value = model_field(model, name)
        if value is not None and value != stored:
            remedy = "" if name == "d_model" else ", or pass other_model=True"
            raise MismatchError(
                f"{where} and the model differ in '{name}': stored {stored!r}, found {value!r}. "
                f"Steer the model that it was made for{remedy}."
            )
    n_layers = model_field(model, "n_layers")
    if n_layers is not None and last_layer >= n_layers:
        raise MismatchError(
            f"{where} steers layer {last_layer}, and the model has {n_layers}, expected 0 to "
            f"{n_layers - 1}. Steer the model that it was made for."
        )


def template_digest(template: str) -> str:
    """Hash a chat template's text (SHA-256)."""
    return hashlib.sha256(template.encode()).hexdigest()


def model_field(model: "AnyModel", name: str) -> Any:
    """Look up what identifies a model; None where it is not known."""
    if isinstance(model, Mapping):
        return model.get(name)
    if name == "family":
        return str(model.hf.config.model_type)
    return getattr(model, {"weights_sha256": "digest"}.get(name, name), None)


@no_type_check  # a user's layer, which `check_layers` refuses
def read_direction(
    out: Path,
    behavior: str,
    layer: Literal["fixed"] | int | Sequence[int],
    *,
    directions: str = METHOD,
) -> tuple[tuple[int, ...], Float32[np.ndarray, "k d"], SteeringSource]:
    """Read layers, their vectors and the source; errors of `Steering.from_results`."""
    values = _read_tensor(out, behavior, directions)
    summary = _read_summary(out / "summary.json")
    provenance = _dig(summary, "store", "provenance")
    source = SteeringSource.from_provenance(
        provenance if isinstance(provenance, dict) else {},
        behavior=behavior,
        split="train",
        method=directions,
    )
    if source.n_layers not in (None, len(values)):
        raise MismatchError(
            f"'{out}' has directions of {len(values)} layers, expected the model's "
            f"{source.n_layers}. Analyze a store of all layers."
        )
    numbers: tuple[int, ...]
    if layer == "fixed":
        numbers = (_fixed_layer(summary, out, behavior, directions),)
    else:
        numbers = check_layers("layer", (layer,) if isinstance(layer, int | np.integer) else layer)
    if numbers[-1] >= len(values):
        raise MismatchError(
            f"layer is {numbers[-1]}, expected 0 to {len(values) - 1}, the layers of '{out}'. "
            "Pass one of these, or 'fixed'."
        )
    return numbers, values[list(numbers)], source


def _read_tensor(out: Path, behavior: str, directions: str) -> Float32[np.ndarray, "layer d_model"]:
    from safetensors import SafetensorError, safe_open

    path, end = out / "directions.safetensors", f"/{directions}"
    if not path.is_file():
        raise StoreNotFoundError(
            f"no directions at '{path}', expected a folder that actcache analyze left. Run: "
            f"actcache analyze STORE.zarr -o {out} --stages vectors,sweep"
        )
    try:
        with safe_open(path, framework="numpy") as file:
            names = [x.removesuffix(end) for x in list(file.keys()) if x.endswith(end)]
            if behavior not in names:
                known = f"one of {', '.join(names)}" if names else "directions of that name"
                raise MismatchError(
                    f"'{path}' has no direction of '{behavior}', expected {known}"
                    f"{'' if directions == METHOD else f' ({directions})'}. Pass one of these."
                )
            tensor = file.get_tensor(behavior + end)
    except (SafetensorError, TypeError) as error:  # bfloat16 is unknown to NumPy
        raise FormatError(
            f"'{path}' is damaged ({error}), expected directions. Run analyze again."
        ) from None
    if not isinstance(tensor, np.ndarray) or tensor.dtype != np.float32 or tensor.ndim != 2:
        raise FormatError(
            f"'{path}' holds a direction of dtype {tensor.dtype} and shape {list(tensor.shape)}, "
            "expected float32 [layer, d_model]. Run analyze again."
        )
    return tensor


def _read_summary(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StoreNotFoundError(
            f"no summary at '{path}', expected what actcache analyze left. Run analyze again."
        ) from None
    except (ValueError, RecursionError) as error:
        raise FormatError(
            f"'{path}' is damaged ({str(error).splitlines()[0]}), expected the summary that "
            "actcache analyze left. Run analyze again."
        ) from None


def _fixed_layer(summary: Any, out: Path, behavior: str, directions: str) -> int:
    layer = _dig(summary, "sweep", "behaviors", behavior, "fixed_layer")
    if directions != METHOD:
        swept = ("sweep", "compared", "sets", directions, "fixed_layers")
        layer = _dig(summary, *swept, behavior)
    if type(layer) is int and layer >= 0:
        return layer
    remedy = f"Run: actcache analyze STORE.zarr -o {out} --stages vectors,sweep"
    if _dig(summary, "labels") is not None:
        remedy = "Labelled prompts have no sweep"
    raise MismatchError(
        f"'{out}' names no fixed layer of '{behavior}', expected what the stage sweep chooses. "
        f"{remedy}; or pass a number as layer."
    )


def _dig(document: Any, *names: str) -> Any:
    """A value deep in JSON; None where something on the way is missing."""
    for name in names:
        document = document.get(name) if isinstance(document, dict) else None
    return document
