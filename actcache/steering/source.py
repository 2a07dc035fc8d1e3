"""Where a steering comes from: model, data, method, and how its strength was chosen."""

from dataclasses import asdict, dataclass, fields
from typing import Any, no_type_check

from actcache.steering.checks import (
    check_integer,
    check_keys,
    check_number,
    check_text,
    refuse,
    set_fields,
)


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
