"""While tests run, wrong types are refused: of arguments, results, fields and shapes that disagree."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
from beartype import beartype
from jaxtyping import Float, TypeCheckError

from actcache.settings import check_names
from actcache.store.store import open_store
from tests.support.type_checks import checked

ONE, TWO = np.zeros(1, np.float32), np.zeros(2, np.float32)
check = partial(checked, typechecker=beartype)
refused = partial(pytest.raises, TypeCheckError)


def test_of_a_plain_function():
    @check
    def half(number: int) -> float:
        return str(number) if number > 9 else number / 2  # type: ignore[return-value]

    assert half(4) == 2.0
    with refused():
        half("4")
    with refused():
        half(10)


def test_of_arrays_whose_dimensions_must_agree():
    @check
    def both(a: Float[np.ndarray, " rows"], b: Float[np.ndarray, " rows"]) -> list[int]:
        return [len(a), len(b)]

    assert both(ONE, ONE) == [1, 1]
    with refused():
        both(ONE, TWO)
    with refused():
        both(ONE, TWO.astype(int)[:1])


def test_of_dataclasses_with_and_without_arrays():
    @check
    @dataclass(frozen=True)
    class Point:
        name: str
        x: int | None = None

    @check
    @dataclass(frozen=True)
    class Pair:
        a: Float[np.ndarray, " rows"]
        b: Float[np.ndarray, " rows"]

    assert Point("p", 1).x == 1
    with refused():
        Point("p", "1")  # type: ignore[arg-type]
    assert Pair(ONE, ONE).a is ONE
    with refused():
        Pair(ONE, TWO)


def test_a_body_that_asks_for_a_shape_has_dimensions_of_its_own():
    @check
    def fits(array: object) -> bool:
        return isinstance(array, Float[np.ndarray, " rows"])  # type: ignore[arg-type]

    @check
    def outer(_a: Float[np.ndarray, " rows"]) -> bool:
        return bool(fits(TWO))

    assert outer(ONE)


def test_of_generators_and_names_that_only_type_checkers_know():
    @check
    def count(stop: int) -> Iterator[int]:
        yield from range(stop)

    @check
    def draw(figure: "Unknown", n: int) -> int:  # type: ignore[name-defined]  # noqa: F821
        return n

    assert list(count(2)) == [0, 1]
    assert draw(None, 1) == 1
    with refused():
        draw(None, "1")


def test_all_of_actcache_is_checked():
    with refused():
        check_names("no type", [])  # type: ignore[arg-type]
    with refused():
        open_store(3)  # type: ignore[arg-type]
