"""Shapes: what configurations say, what is refused."""

import json

import pytest
import torch
from conftest import TINY_CONFIG
from families import LLAMA3, SIZES
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from spectrolib.model.components import components
from spectrolib.model.layers import Rotary
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


HEADS = {**SIZES, "num_key_value_heads": 4}
BARE3 = {name: value for name, value in LLAMA3.items() if not name.startswith(("original", "rope_theta"))}
OTHERS = {"rope_theta": 1000.0, "rope_type": "default"}


@pytest.mark.parametrize(
    ("family", "said"),
    [
        ("llama", {"rope_theta": 5e5, "rope_parameters": OTHERS}),
        ("llama", {"rope_theta": 5e5, "rope_scaling": {"type": "default"}, "rope_parameters": OTHERS}),
        ("llama", {"rope_theta": 77.0, "rope_scaling": LLAMA3}),
        ("llama", {"rope_theta": 77.0, "rope_scaling": {"type": "llama3", **LLAMA3, "rope_type": None}}),
        ("llama", {"max_position_embeddings": 48, "rope_scaling": BARE3}),
        ("llama", {"original_max_position_embeddings": 20, "rope_scaling": LLAMA3}),
        ("mistral", {"rope_theta": 1e6}),
        ("qwen2", {"rope_theta": 1e6, "rope_parameters": OTHERS}),
        ("qwen3", {"rope_scaling": {"rope_theta": 50.0, "rope_type": "default"}}),
        ("gpt_neox", {"rotary_pct": 0.5, "rotary_emb_base": 99, "rope_parameters": {"rope_type": "default"}}),
        ("gpt_neox", {"rotary_pct": 0.5, "rope_parameters": {**OTHERS, "partial_rotary_factor": 1.0}}),
        ("gpt_neox", {}),
    ],
)
def test_rotations_are_those_of_transformers(family, said):
    """Where a setting stands twice, ours is the one that transformers takes."""
    config = json.loads(json.dumps({**SIZES, "hidden_size": 32, "num_key_value_heads": 2, **said}))
    config = {name: value for name, value in config.items() if family != "gpt_neox" or name != "num_key_value_heads"}
    ours = Rotary(Shape.from_config({"model_type": family, **config}), torch.device("cpu")).frequencies
    for table in config.values():
        table.pop("rope_type", None) if isinstance(table, dict) and table.get("rope_type", "") is None else None
    module = AutoModelForCausalLM.from_config(CONFIG_MAPPING[family](pad_token_id=None, **config))
    theirs = next(buffer for name, buffer in module.named_buffers() if name.endswith("inv_freq"))
    assert torch.allclose(ours, theirs, rtol=1e-6)


@pytest.mark.parametrize(
    ("family", "said", "message"),
    [
        (
            "llama",
            {"num_hidden_layers": "2"},
            'num_hidden_layers is "2" in the configuration of a .llama.: it must be a',
        ),
        ("llama", {"num_attention_heads": True}, "num_attention_heads is true"),
        ("llama", {"rms_norm_eps": "1e-6"}, "rms_norm_eps is"),
        ("llama", {"tie_word_embeddings": "no"}, "tie_word_embeddings is .*true or false"),
        ("llama", {"rope_parameters": [1]}, r"rope_parameters is \[1\]"),
        ("llama", {"hidden_act": 3}, "hidden_act is 3"),
        ("llama", {"final_logit_softcapping": 30.0}, "final_logit_softcapping is 30.0 .*would change the numbers"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantization_config is"),
        ("llama", {"embedding_multiplier": 12.0}, "embedding_multiplier is 12.0"),
        ("llama", {"per_layer_config": {"0": {"head_dim": 4}}}, "per_layer_config is"),
        ("llama", {"num_local_experts": 8}, "num_local_experts is 8"),
        ("llama", {"is_causal": False}, "is_causal is false"),
        ("llama", {"layer_types": ["full_attention", "chunked_attention"]}, "layer_types of a 'llama' are chunked"),
        ("llama", {"rope_parameters": {**OTHERS, "factor": 2.0}}, "factor is set in rope_parameters"),
        ("llama", {"rope_parameters": {"full_attention": OTHERS}}, "full_attention is set in rope_parameters"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ("mistral", {"attention_bias": True}, "attention_bias is true in the configuration of a 'mistral'"),
        ("qwen3", {"mlp_bias": True}, "mlp_bias is true"),
        ("gpt_neox", {"rope_theta": 500.0}, "rope_theta is 500.0 .*, and its other fields say 10000.0"),
        ("gpt_neox", {"head_dim": 4}, "head_dim is 4 .*, and its other fields say 6"),
        ("gpt2", {"n_layer": 2, "n_head": 4, "n_embd": 24, "num_hidden_layers": 3}, "num_hidden_layers is 3"),
        ("gpt2", {"n_layer": 2, "n_head": 4, "n_embd": 24, "num_hidden_layers": None, "n_inner": 0}, "n_inner is 0"),
    ],
)
def test_a_field_is_used_as_transformers_uses_it_or_refused_by_name(family, said, message):
    sizes = {"vocab_size": 53} if family == "gpt2" else SIZES
    with pytest.raises(ValueError, match=message):
        Shape.from_config({"model_type": family, **sizes, **said})


def test_fields_that_change_no_number_are_let_by():
    harmless = {"initializer_range": 0.02, "torch_dtype": "float16", "use_cache": True, "pretraining_tp": 1}
    harmless |= {"logit_scale": 1.0, "quantization_config": None, "unsloth_fixed": True, "max_position_embeddings": 99}
    plain = {"model_type": "llama", **SIZES}
    assert Shape.from_config({**plain, **harmless}) == Shape.from_config(plain)


def test_attention_slides_where_transformers_lets_it():
    longest = lambda family, **said: Shape.from_config({"model_type": family, **HEADS, **said}).longest  # noqa: E731
    assert longest("mistral") == 4096 and longest("mistral", sliding_window=None) == 0
    assert longest("mistral", sliding_window=32) == 32 and longest("llama") == 0
    assert longest("qwen2", sliding_window=32) == 0
    assert longest("qwen2", sliding_window=32, use_sliding_window=True) == 0  # from layer 28 on
    assert longest("qwen2", sliding_window=32, use_sliding_window=True, max_window_layers=1) == 32
    assert longest("qwen3", use_sliding_window=True, layer_types=["full_attention", "sliding_attention"]) == 4096
    assert longest("qwen3", use_sliding_window=True, max_window_layers=0, layer_types=["full_attention"] * 2) == 0


def test_heads_of_keys_that_are_not_named():
    groups = lambda family: Shape.from_config({"model_type": family, **SIZES, "num_attention_heads": 32}).groups  # noqa: E731
    assert [groups(family) for family in ("llama", "mistral", "qwen2", "qwen3")] == [32, 8, 32, 32]
