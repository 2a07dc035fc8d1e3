"""Which families are refused, with their names and before any weights are read."""

from typing import Any

import pytest

from actcache.engine.model import load_config, load_model
from actcache.errors import ModelError

pytestmark = pytest.mark.model


def refused_configs():
    import transformers

    size: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 97}
    return [
        (transformers.MambaConfig(**size), "recurrent state"),
        (transformers.Mamba2Config(**size, num_heads=8, head_dim=8), "recurrent state"),
        (transformers.JambaConfig(**size), "recurrent state"),
        (transformers.FalconH1Config(**size), "recurrent state"),
        (transformers.Lfm2Config(**size), "recurrent state"),
        (transformers.Qwen3NextConfig(**size), "recurrent state"),
        (transformers.RecurrentGemmaConfig(**size), "recurrent state"),
        (transformers.T5Config(), "encoder-decoder"),
        (transformers.BartConfig(), "encoder-decoder"),
    ]


@pytest.mark.parametrize(
    ("refused", "why"),
    [pytest.param(*case, id=case[0].model_type) for case in refused_configs()],
)
def test_a_family_is_refused_by_name_without_its_weights(refused, why, tmp_path):
    refused.save_pretrained(tmp_path)  # a config alone, no weights

    for load in (load_config, load_model):
        with pytest.raises(ModelError, match=rf"'{refused.model_type}' .*{why}"):
            load(str(tmp_path))


def test_a_family_that_transformer_lens_does_not_know_is_refused_by_name(tmp_path):
    import transformers

    unknown = transformers.BioGptConfig(hidden_size=32, num_hidden_layers=2)
    unknown.architectures = ["BioGptForCausalLM"]
    unknown.save_pretrained(tmp_path)

    with pytest.raises(ModelError, match=r"does not know the parts of the family 'biogpt'"):
        load_model(str(tmp_path))
