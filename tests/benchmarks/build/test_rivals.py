"""Do all tools compute the same residuals, and is each that is missing named?"""

from argparse import Namespace

import numpy as np
import pytest

from benchmarks.build import rivals
from benchmarks.build.rival_tools import DOES, MAKERS, PACKAGES, make, missing
from benchmarks.build.rivals import largest_relative_error, read_jobs


@pytest.fixture(scope="module")
def jobs(folder):
    args = Namespace(n=10, batch=4, batch_tokens=100, sorted=False)
    model, rows = str(folder / "model"), [str(folder / "rows.jsonl")]
    return read_jobs(Namespace(**vars(args), model=model, data=rows), folder)


def reference_last_token(job, ids):
    """`[layer, d]` of the last token: one sequence, unpadded, a hook on each block."""
    import torch

    layers = []

    def read(_block, _args, output):
        layers.append((output[0] if isinstance(output, tuple) else output)[0, -1].numpy().copy())

    handles = [block.register_forward_hook(read) for block in job.model.anatomy.blocks]
    with torch.inference_mode():
        job.model.hf(input_ids=torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    return np.stack(layers)


def reference_residuals(job):
    return np.stack([[reference_last_token(job, ids) for ids in side] for side in job.tokens])


@pytest.mark.model
def test_rivals_run_and_those_that_are_not_installed_are_named(printed):
    rivals.main(["--quick", "--questions", "pairs,sweep"])

    document = printed()
    absent = [tool for tool in PACKAGES if missing(tool)]
    assert document["about"]["not installed"] == absent
    for tool in set(DOES) - set(absent) - set(rivals.ACTCACHE):
        assert document[f"pairs: {tool} / actcache, in memory"] > 0
    if "steering-vectors" not in absent:
        assert document["sweep: largest absolute difference of propensity"] < 1e-5


@pytest.mark.model
@pytest.mark.parametrize("tool", [tool for tool in DOES if tool != "plain forwards"])
@pytest.mark.parametrize("name", ["pairs", "prompts"])
# Rivals, installed in an environment of their own, may warn.
@pytest.mark.filterwarnings("default")
def test_each_tool_gives_the_residuals_of_the_last_tokens(tool, name, jobs):
    if missing(tool):
        pytest.skip(f"{tool} is not installed: make bench-rivals")
    if (tool, name) == ("steering-vectors", "prompts"):
        pytest.skip("steering-vectors takes only pairs")
    job = jobs[name]

    residuals = make(tool, job)()

    n_right = -1 if tool == rivals.POST_NORM else None
    errors = largest_relative_error(residuals, reference_residuals(job))[:n_right]
    np.testing.assert_array_less(errors, 1e-5)  # float32, sums in another order


@pytest.mark.model
def test_the_last_layer_of_transformers_is_after_the_final_norm(jobs):
    job = jobs["prompts"]
    residuals = make("transformers", job)()

    assert largest_relative_error(residuals, reference_residuals(job))[-1] > 0.1


@pytest.mark.model
def test_a_tool_that_gives_other_numbers_stops_the_benchmark():
    def slightly_wrong(job):
        right = MAKERS["actcache, in memory"](job)
        return lambda: 1.01 * right()

    with pytest.raises(SystemExit, match="TransformerBridge differs from ours"):
        rivals.main(
            ["--quick", "--questions", "prompts"],
            makers={**MAKERS, "TransformerBridge": slightly_wrong},
        )


@pytest.mark.model
def test_jobs_hold_the_same_tokens_as_texts_and_as_ids(jobs):
    from actcache.engine.model import load_tokenizer

    for name, n_sides in (("pairs", 2), ("prompts", 1)):
        job = jobs[name]
        assert len(job.texts) == len(job.tokens) == n_sides
        tokenizer = load_tokenizer(job.folder)
        for texts, tokens in zip(job.texts, job.tokens, strict=True):
            assert len(texts) == 10
            assert [tuple(tokenizer(text)["input_ids"]) for text in texts] == list(tokens)
