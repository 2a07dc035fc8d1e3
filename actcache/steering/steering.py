"""What is done to a running model's activations, as data.

A `Steering` is made, saved and loaded with NumPy alone; `actcache.steer` and `actcache.generate`
apply it. `a + b` is a `SteeringSum`, applied in order.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, no_type_check

import numpy as np
from jaxtyping import Float32

from actcache.steering.checks import (
    OPERATOR_UNITS,
    OPERATORS,
    STEERED_TOKENS,
    STEERING_SITES,
    UNIT_OPERATORS,
    Operator,
    SteeredTokens,
    SteeringSite,
    check_array,
    check_bool,
    check_choice,
    check_layers,
    check_number,
    check_steering_vectors,
    check_tokens,
    check_window,
    refuse,
    set_fields,
)
from actcache.steering.files.steering_file import (
    canonical_json,
    part_values,
    read_steering,
    write_steering,
)
from actcache.steering.gates import PromptGate, TokenGate, gate_fields
from actcache.steering.source import METHOD, SteeringSource, read_direction, require_model

if TYPE_CHECKING:
    from actcache.steering.source import AnyModel


@no_type_check  # factors and strengths too
class AnySteering(ABC):
    """A `Steering` or a `SteeringSum`; equal if both do the same, wherever they come from."""

    __array_ufunc__ = None  # so that `numpy.float64(0.5) * steering` asks us

    @property
    @abstractmethod
    def parts(self) -> "tuple[Steering, ...]":
        """Single steerings, in the order in which they are applied."""

    @abstractmethod
    def at(self, strength: float) -> "AnySteering":
        """Set the strength of every part."""

    @abstractmethod
    def __mul__(self, factor: float) -> "AnySteering":
        """Multiply the strength of every part."""

    def __rmul__(self, factor: float) -> "AnySteering":
        return self * factor

    def __add__(self, other: "AnySteering") -> "SteeringSum":
        if not isinstance(other, AnySteering):
            return NotImplemented
        return SteeringSum((*self.parts, *other.parts))

    @property
    def d_model(self) -> int:
        """Width of the vectors."""
        return int(self.parts[0].vectors.shape[-1])

    @property
    def spec(self) -> list[dict[str, Any]]:
        """What is done, as JSON has it: each part's fields without arrays and source."""
        return [part.fields for part in self.parts]

    @property
    def tensors(self) -> dict[str, Float32[np.ndarray, "..."]]:
        """The arrays: `0.vectors`, `0.gate.vectors`, …, numbered by part."""
        arrays = {}
        for number, part in enumerate(self.parts):
            arrays[f"{number}.vectors"] = part.vectors
            if isinstance(part.gate, PromptGate):
                arrays[f"{number}.gate.vectors"] = part.gate.vectors
        return arrays

    @cached_property
    def digest(self) -> str:
        """Name the configuration: SHA-256 of `spec` and `tensors`; the source is not part of it."""
        digest = hashlib.sha256(canonical_json(self.spec).encode())
        for name, array in self.tensors.items():
            digest.update(f"\0{name} {list(array.shape)}\0".encode())
            digest.update(array.astype("<f4", copy=False).data)
        return digest.hexdigest()

    def save(self, path: str | Path) -> None:
        """Write it as one safetensors file with canonical JSON in its metadata; replaces a file.

        Equal steerings of one source are equal files, byte for byte.
        """
        parts = [
            {**part.fields, "source": part.source and part.source.document()} for part in self.parts
        ]
        write_steering(Path(path), {"digest": self.digest, "parts": parts}, self.tensors)

    @staticmethod
    def load(
        path: str | Path, *, model: "AnyModel | None" = None, other_model: bool = False
    ) -> "AnySteering":
        """Read what `save` wrote, with NumPy alone; nothing in the file is executed.

        Args:
            path: the file; or a control vector in GGUF, which is read as `add` at `resid_post` of
                all tokens.
            model: the model that is to be steered, or the fields that identify it: it must be the
                one that the steering was made for.
            other_model: accept another model of the same width.

        Raises:
            FormatError: the file is damaged, or something else; names the field.
            MismatchError: the model is another; names the field.
        """
        steering = read_steering(Path(path), _make)
        if model is not None:
            steering.require_model(model, where=f"'{path}'", other_model=other_model)
        return steering

    def require_model(
        self, model: "AnyModel", *, where: str = "the steering", other_model: bool = False
    ) -> None:
        """Refuse a model that the steering was not made for, is too narrow or has too few layers.

        Args:
            model: a model, or its fields: those of `actcache.identity.IDENTITY`, and
                `tokenizer_sha256` and `template_sha256`; what is not known agrees.
            where: what messages call the steering.
            other_model: accept another model, if it is as wide and has the layers.

        Raises:
            MismatchError: names the first field that differs, and both values.
        """
        for part in self.parts:
            require_model(
                replace(part.source or SteeringSource(), d_model=self.d_model),
                model,
                last_layer=part.last_layer,
                where=where,
                other_model=other_model,
            )

    def __repr__(self) -> str:
        parts = (
            f"{part.operator} {part.strength:g} at {part.site} of layers {list(part.layers)}"
            for part in self.parts
        )
        return f"<{type(self).__name__} {self.digest[:8]}: {' + '.join(parts)}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AnySteering) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)


@no_type_check  # users' values: `__post_init__` refuses them, also under a type checker
@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Steering(AnySteering):
    """One operator at one site of some layers.

    Raises:
        ActcacheError: names the field that is wrong, what was expected and what to do.
    """

    operator: Operator = "add"
    site: SteeringSite = "resid_post"
    layers: tuple[int, ...]
    """Blocks from 0, ascending."""

    vectors: Float32[np.ndarray, "k d"] | Float32[np.ndarray, "k 2 d"]
    """One vector (or plane) a layer, kept as float32 that cannot be written to. Vectors of `ablate`
    and `set` have norm 1, planes are orthonormal, both to 1e-6. With tokens `front` there is one
    layer, and row i is added to the prompt's i-th real token."""

    strength: float = 1.0
    """`add`: multiplier; `ablate`: share removed; `set`: projection; `turn_to` and `rotate`:
    degrees."""

    tokens: SteeredTokens = "prompt"
    window: tuple[int, int | None] | None = None
    """Decode steps start:stop whose tokens are steered; None is all. Step 0 computes the whole
    prompt, and so the first generated token's logits, step 1 the first generated token."""

    gate: TokenGate | PromptGate | None = None
    renorm: bool = False
    source: SteeringSource | None = None

    identity: ClassVar[dict[str, float | None]] = {
        "add": 0.0,
        "ablate": 0.0,
        "rotate": 0.0,
        "set": None,
        "turn_to": None,
    }
    """The strength at which an operator changes nothing."""

    def __post_init__(self) -> None:
        check_choice("operator", self.operator, OPERATORS)
        check_choice("site", self.site, STEERING_SITES)
        check_choice("tokens", self.tokens, STEERED_TOKENS)
        layers = check_layers("layers", self.layers)
        vectors = check_array("vectors", self.vectors)
        window = None if self.window is None else check_window("window", self.window)
        set_fields(self, layers=layers, vectors=vectors, window=window)
        set_fields(self, strength=check_number("strength", self.strength))
        set_fields(self, renorm=check_bool("renorm", self.renorm))
        check_steering_vectors(self.operator, self.tokens, layers, vectors)
        check_tokens(
            self.tokens,
            operator=self.operator,
            layers=layers,
            window=window,
            token_gate=isinstance(self.gate, TokenGate),
        )
        self._check_gate()
        self._check_source()

    def _check_gate(self) -> None:
        if not isinstance(self.gate, TokenGate | PromptGate | None):
            refuse("gate", repr(self.gate), "a TokenGate, a PromptGate or None", "Pass one.")
        if isinstance(self.gate, PromptGate) and self.gate.vectors.shape[-1] != self.d_model:
            width, expected = self.gate.vectors.shape[-1], f"{self.d_model}, as vectors are"
            refuse("gate.vectors", f"{width} wide", expected, "Pass conditions of that model.")

    def _check_source(self) -> None:
        source = self.source
        if not isinstance(source, SteeringSource | None):
            refuse("source", repr(source), "a SteeringSource or None", "Pass one.")
        if source is not None and source.d_model not in (None, self.d_model):
            expected = f"{source.d_model}, the model's d_model"
            refuse("vectors", f"{self.d_model} wide", expected, "Pass vectors of that model.")
        n_layers = None if source is None else source.n_layers
        if n_layers is not None and self.last_layer >= n_layers:
            expected = f"0 to {n_layers - 1}, the model's layers"
            refuse("layers", self.last_layer, expected, "Pass some of these.")

    @property
    def parts(self) -> "tuple[Steering, ...]":
        """This steering alone."""
        return (self,)

    @property
    def last_layer(self) -> int:
        """The last layer that is steered or read by the gate."""
        read = self.gate.layers if isinstance(self.gate, PromptGate) else ()
        return max(*self.layers, *read, 0)

    @property
    def fields(self) -> dict[str, Any]:
        """Every field but arrays and source, as JSON has it."""
        return {
            "operator": self.operator,
            "site": self.site,
            "layers": list(self.layers),
            "strength": self.strength,
            "tokens": self.tokens,
            "window": None if self.window is None else list(self.window),
            "gate": gate_fields(self.gate),
            "renorm": self.renorm,
        }

    @classmethod
    def from_results(
        cls,
        out: str | Path,
        behavior: str,
        *,
        layer: Literal["fixed"] | int | Sequence[int] = "fixed",
        directions: str = METHOD,
        **fields: Any,
    ) -> "Steering":
        """Take a behavior's directions from what `actcache analyze` left, without torch.

        Args:
            out: the results folder.
            behavior: which; of labels `<positive label>-<negative label>`.
            layer: a block, several, or `fixed`: the one with the largest mean slope on train.
            directions: the difference of means, or another set such as `rfm`, of norm 1.
            fields: other fields of the steering; for `ablate` and `set` the vectors have norm 1.

        Raises:
            MismatchError: the folder has no such direction, layer or sweep; says with which flags
                to run analyze.
            FormatError: a file is damaged.
        """
        layers, vectors, source = read_direction(Path(out), behavior, layer, directions=directions)
        if fields.get("operator") in UNIT_OPERATORS:
            norms = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
            vectors = np.divide(vectors, norms, where=norms > 0, out=vectors.astype(np.float64))
        return cls(layers=layers, vectors=vectors, source=source, **fields)

    def at(self, strength: float) -> "Steering":
        """Set the strength."""
        return replace(self, strength=strength)

    def __mul__(self, factor: float) -> "Steering":
        """Multiply the strength; refused where no strength changes nothing: `set`, `turn_to`."""
        if self.identity[self.operator] is None:
            refuse(
                "operator",
                f"'{self.operator}', whose strength is a target",
                "'add', 'ablate' or 'rotate' in steering * factor",
                "Set the strength with steering.at(strength).",
            )
        return replace(self, strength=self.strength * check_number("factor", factor))


@no_type_check  # users' values: `__post_init__` refuses them, also under a type checker
@dataclass(frozen=True, eq=False, repr=False)
class SteeringSum(AnySteering):
    """Several steerings, applied in order; sums within it are taken apart."""

    steerings: tuple[Steering, ...]

    def __post_init__(self) -> None:
        for steering in self.steerings:
            if not isinstance(steering, AnySteering):
                refuse("a part of the sum", repr(steering), "a Steering", "Pass one.")
        parts = tuple(part for steering in self.steerings for part in steering.parts)
        if not parts:
            refuse("a sum", "empty", "a Steering or more", "Pass None where nothing is steered.")
        widths = [part.d_model for part in parts]
        if len(set(widths)) > 1:
            refuse("a sum", f"of vectors {widths} wide", "one width", "Add steerings of one model.")
        set_fields(self, steerings=parts)

    @property
    def parts(self) -> tuple[Steering, ...]:
        """Its steerings, in order."""
        return self.steerings

    def at(self, strength: float) -> "SteeringSum":
        """Set the strength of every part; refused where they count different things."""
        units = dict.fromkeys(OPERATOR_UNITS[part.operator] for part in self.steerings)
        if len(units) > 1:
            refuse(
                "a sum",
                f"of strengths in {', '.join(units)}",
                "one unit",
                "Multiply it by a factor, or set the strength of each part.",
            )
        return SteeringSum(tuple(part.at(strength) for part in self.steerings))

    def __mul__(self, factor: float) -> "SteeringSum":
        """Multiply the strength of every part."""
        return SteeringSum(tuple(part * factor for part in self.steerings))


def _make(spec: dict[str, Any], tensors: dict[str, np.ndarray]) -> AnySteering:
    """Make the steering of a file's JSON and arrays; refuses what `save` would not write."""
    parts = tuple(Steering(**values) for values in part_values(spec["parts"], tensors))
    steering = parts[0] if len(parts) == 1 else SteeringSum(parts)
    for name in tensors.keys() - steering.tensors.keys():
        refuse(f"tensor '{name}'", "unknown", "those of the parts", "Save it again.")
    digest = spec.get("digest", steering.digest)  # a control vector has none
    if digest != steering.digest:
        refuse("digest", digest, steering.digest, "The file was changed: save it again.")
    return steering
