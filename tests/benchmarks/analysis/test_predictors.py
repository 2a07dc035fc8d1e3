"""Are the predictors timed part by part, on a store that holds what they look for?"""

import numpy as np
import pytest

from benchmarks.analysis import predictors


@pytest.mark.long
@pytest.mark.model
def test_the_predictors_are_timed_by_part_and_find_what_was_planted(printed):
    predictors.main(["--quick"])

    document = printed()
    parts = ("networks of L2S", "layer predictors")
    total = document["in all, seconds"]
    assert 0 < sum(document[f"{part}, seconds"] for part in parts) < total
    # Little time passes between the progress bars, so nothing long goes unnamed.
    assert document[f"{predictors.REST}, seconds"] < total / 2
    assert document["loss of L2S over the mean's"] < 1
    assert document["peak resident memory, MB"] > 100


def test_a_planted_store_holds_the_best_layer_in_its_prompts():
    truth = predictors.planted(400, 32)

    np.testing.assert_array_equal(truth.best, predictors.planted(400, 32).best)
    topics = (truth.latent[:, :8] * np.sqrt(np.arange(1, 9))).argmax(1)
    for topic in range(8):
        assert len(np.unique(truth.best[topics == topic])) == 1
    assert abs(truth.letter.sum()) <= 1
    assert len(np.unique(truth.best)) > 4
