"""The engine's own definition of a cell against the plain loop in tests/reference."""

import numpy as np
import pytest
import torch

from actcache.engine.model import adopt_model
from actcache.engine.reference import reference_cell
from tests.engine.test_steered_scores import RULES
from tests.reference.engine import naive_propensity
from tests.support.tiny import make, ragged_rows

pytestmark = pytest.mark.model


def test_reference_cell_equals_the_plain_loop():
    model = adopt_model(make("gpt_neo"), name="gpt_neo")
    direction = torch.randn(32, generator=torch.Generator().manual_seed(6))

    for rule in RULES:
        for row in ragged_rows():
            naive = naive_propensity(
                model.hf,
                model.anatomy.blocks,
                row,
                direction,
                1.5,
                2,
                first_steered=rule.first_steered,
                score=rule.score,
            )
            np.testing.assert_allclose(
                reference_cell(model, row, direction, 1.5, 2, rule), naive, rtol=1e-5, atol=1e-4
            )
