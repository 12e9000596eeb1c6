"""Shapes: what configurations say, what is refused."""

import pytest
from conftest import TINY_CONFIG

from spectrolib.model.components import components
from spectrolib.model.shapes import Shape


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model_type": "bloom"}, "model family 'bloom' is not supported: .*'gpt_neox' .*'qwen3'"),
        ({"model_type": "gpt2"}, "the configuration of a 'gpt2' lacks 'n_layer'"),
        ({"attention_bias": False}, "attention_bias is false"),
        ({"hidden_act": "mish"}, "activation 'mish' is not supported"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2}}, "rotary embedding of type 'linear'"),
    ],
)
def test_models_the_engine_cannot_run_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        components({**TINY_CONFIG, **change})


def test_configs_of_transformers_4_and_5_mean_the_same():
    old = {**TINY_CONFIG, "rotary_pct": 0.5, "rotary_emb_base": 5000}
    new = {**TINY_CONFIG, "rope_parameters": {"rope_theta": 5000, "partial_rotary_factor": 0.5, "rope_type": "default"}}
    assert Shape.from_config(old) == Shape.from_config(new)
    assert Shape.from_config(old).rotary == 5
