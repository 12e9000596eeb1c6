"""Components: 32 for a 6x4 model, disjoint, heads partitioning the attention matrices."""

import re

import pytest
import torch
from conftest import TINY_CONFIG, random_gpt_neox
from hypothesis import given
from hypothesis import strategies as st
from reference import put

from spectrobook.making.neox import Architecture, initial_weights
from spectrolib.model.components import Component, blocks, check_component, components, gather, split, weight_count
from spectrolib.model.loading import engine_of
from spectrolib.model.shapes import Shape


@pytest.fixture(scope="module")
def engine(tiny_gpt_neox):
    return engine_of(tiny_gpt_neox)


def ownership(engine, names):
    """How many of the components ``names`` hold each element of each parameter."""
    counts = {name: torch.zeros(tensor.shape, dtype=torch.int64) for name, tensor in engine.weights.items()}
    for name in names:
        for block in blocks(name, engine.shape):
            block.of(counts).add_(1)
    return counts


@pytest.mark.parametrize("width, mlp, vocabulary", [(128, 512, 50304), (128, 512, 4096), (24, 7, 11)])
def test_a_6_by_4_model_has_32_components(width, mlp, vocabulary):
    config = {**TINY_CONFIG, "num_hidden_layers": 6, "num_attention_heads": 4}
    config |= {"hidden_size": width, "intermediate_size": mlp, "vocab_size": vocabulary}
    names = components(config)
    assert len(names) == len(set(names)) == 32
    assert names[:5] == ["l0h0", "l0h1", "l0h2", "l0h3", "l1h0"]
    assert names[24:] == ["l0 mlp", "l1 mlp", "l2 mlp", "l3 mlp", "l4 mlp", "l5 mlp", "embed", "unembed"]


@pytest.mark.parametrize(
    "layers, heads, count",
    [(6, 4, 32), (6, 8, 56), (12, 12, 158), (24, 16, 410), (16, 8, 146)],
    ids=["14M", "31M and 70M", "160M", "410M and 1.4B", "1B"],
)
def test_component_counts_of_the_pythia_models(layers, heads, count):
    config = {**TINY_CONFIG, "num_hidden_layers": layers, "num_attention_heads": heads, "hidden_size": 8 * heads}
    assert len(components(config)) == count


def test_names_come_from_models_configs_and_shapes_alike(tiny_gpt_neox, tiny_model, engine):
    expected = components(engine.shape)
    assert components(tiny_model) == expected
    assert components(tiny_gpt_neox) == expected
    assert components(tiny_gpt_neox.config.to_dict()) == expected


def test_heads_partition_the_attention_matrices(engine):
    """Every element of the fused QKV matrix, its bias and the output matrix is in exactly one head."""
    heads = [name for name in components(engine.shape) if re.fullmatch(r"l\d+h\d+", name)]
    counts = ownership(engine, heads)
    for layer in range(engine.shape.layers):
        for part in ("query_key_value.weight", "query_key_value.bias", "dense.weight"):
            assert (counts.pop(f"gpt_neox.layers.{layer}.attention.{part}") == 1).all()
    assert all((count == 0).all() for count in counts.values())


def test_components_are_disjoint_and_say_what_belongs_to_none(engine):
    counts = ownership(engine, components(engine.shape))
    assert max(int(count.max()) for count in counts.values()) == 1
    none = sorted(name for name, count in counts.items() if (count == 0).all())
    mixed = [name for name, count in counts.items() if 0 < int(count.sum()) < count.numel()]
    print("parameters that belong to no component:", *none, sep="\n  ")
    expected = ["gpt_neox.final_layer_norm.bias", "gpt_neox.final_layer_norm.weight"]
    for layer in range(engine.shape.layers):
        names = ("input_layernorm.weight", "input_layernorm.bias", "attention.dense.bias")
        names += ("post_attention_layernorm.weight", "post_attention_layernorm.bias")
        expected += [f"gpt_neox.layers.{layer}.{name}" for name in names]
    assert none == sorted(expected)
    assert mixed == []


def test_a_head_holds_its_own_query_key_value_and_output(tiny_gpt_neox, engine):
    """The rows of the fused matrix, viewed as (heads, 3, head_dim), at h; the columns of the output matrix at h."""
    shape, weights = engine.shape, engine.weights
    qkv, bias, out = blocks("l1h2", shape)
    attention = tiny_gpt_neox.gpt_neox.layers[1].attention
    fused = attention.query_key_value.weight.view(shape.heads, 3, shape.head_dim, shape.width)
    torch.testing.assert_close(qkv.of(weights).view(3, shape.head_dim, shape.width), fused[2], rtol=0, atol=0)
    fused_bias = attention.query_key_value.bias.view(shape.heads, 3, shape.head_dim)
    torch.testing.assert_close(bias.of(weights).view(3, shape.head_dim), fused_bias[2], rtol=0, atol=0)
    torch.testing.assert_close(out.of(weights), attention.dense.weight[:, 20:30], rtol=0, atol=0)


def test_blocks_are_the_masks_of_the_authors_library(tiny_gpt_neox, engine):
    """Heads, MLPs and the embedding; devinterp 2.0.1 does not find the unembedding under transformers 5's name."""
    masks_of = pytest.importorskip("devinterp.slt.weight_restrictions").create_param_masks
    for name in components(engine.shape):
        if name == "unembed":
            continue
        theirs = {key: torch.zeros(p.shape, dtype=torch.bool) for key, p in tiny_gpt_neox.named_parameters()}
        for key, mask in masks_of(tiny_gpt_neox, name).items():
            theirs[key] |= torch.ones_like(theirs[key]) if mask is None else mask.bool()
        ours = ownership(engine, [name])
        for key, mask in theirs.items():
            assert torch.equal(ours[key.replace("lm_head", "embed_out")] == 1, mask), (name, key)


def test_zeroing_a_head_removes_exactly_its_output():
    """Without its columns of the output matrix, a head is as good as absent: the blocks are what the head does."""
    model = random_gpt_neox()
    engine = engine_of(model)
    ids = torch.arange(12).view(1, 12)
    *_, out = blocks("l0h1", engine.shape)
    seen = {}

    def remember(module, inputs):
        seen["context"] = inputs[0].clone()
        inputs[0][..., 10:20] = 0

    hook = model.gpt_neox.layers[0].attention.dense.register_forward_pre_hook(remember)
    with torch.no_grad():
        silenced = model(ids).logits
        hook.remove()
        out.of(dict(model.named_parameters())).zero_()
        torch.testing.assert_close(model(ids).logits, silenced)
    assert seen["context"][..., 10:20].abs().max() > 0.1


def test_replace_changes_the_component_alone(engine):
    for name in components(engine.shape):
        owned = blocks(name, engine.shape)
        flat = gather(engine.weights, owned)
        moved = put(engine.weights, owned, flat + 1)
        torch.testing.assert_close(gather(moved, owned), flat + 1, rtol=0, atol=0)
        changed = sum(int((moved[key] != tensor).sum()) for key, tensor in engine.weights.items())
        assert changed == flat.numel()
        torch.testing.assert_close(gather(engine.weights, owned), flat, rtol=0, atol=0)  # the original stays


def test_full_is_every_parameter(engine):
    owned = blocks("full", engine.shape, tuple(engine.weights))
    assert sorted(block.parameter for block in owned) == sorted(engine.weights)
    assert gather(engine.weights, owned).numel() == sum(t.numel() for t in engine.weights.values())


def test_split_keeps_the_graph(engine):
    owned = blocks("l0 mlp", engine.shape)
    flat = gather(engine.weights, owned).requires_grad_()
    pieces = split(flat, [block.of(engine.weights).shape for block in owned])
    sum((i + 1) * piece.sum() for i, piece in enumerate(pieces)).backward()
    expected = torch.cat([torch.full((piece.numel(),), i + 1.0) for i, piece in enumerate(pieces)])
    torch.testing.assert_close(flat.grad, expected, rtol=0, atol=0)


@given(st.text(max_size=8))
def test_unknown_components_are_refused(name):
    shape = Shape.from_config(TINY_CONFIG)
    known = {*components(shape), "full"}
    if name in known:
        check_component(name, shape)
    else:
        with pytest.raises(ValueError, match="unknown component"):
            check_component(name, shape)


@pytest.mark.parametrize("name", ["l2h0", "l0h3", "l2 mlp", "L0H0", "l0mlp", "l00h0", "embed ", "", "l-1h0"])
def test_near_misses_are_refused_with_what_there_is(name):
    with pytest.raises(ValueError, match=r"unknown component .* l0h0 to l1h2, MLPs 'l0 mlp' to 'l1 mlp'"):
        check_component(name, Shape.from_config(TINY_CONFIG))


SMALL = Architecture(layers=2, heads=4, width=64, mlp=256, vocabulary=400)


def test_parameters_of_components_are_those_of_their_blocks():
    shape, weights = Shape.from_config(SMALL.config()), initial_weights(SMALL, 0)
    for name in ("l1h2", "l0 mlp", "embed", "unembed", "full"):
        held = sum(block.of(weights).numel() for block in blocks(name, shape, tuple(weights)))
        assert weight_count(name, shape) == held


def test_a_component_is_parsed_once_and_named_as_before(engine):
    for name in [*components(engine.shape), "l12g3", "full"]:
        assert str(Component.of(name)) == name
        assert Component.of(Component.of(name)) == Component.of(name)
    assert Component.of("l10h2") == Component("head", 10, 2)
    assert Component.of("l3g1") == Component("group", 3, 1)
    assert Component.of("l7 mlp") == Component("mlp", 7)
    assert Component.of("full") == Component("full")
    assert check_component("l1h2", engine.shape) == Component("head", 1, 2)
    assert blocks(Component("head", 1, 2), engine.shape) == blocks("l1h2", engine.shape)


@pytest.mark.parametrize("name", ["", "l0", "l01h1", "l1h01", "l0h", "l0mlp", "l0 mlp ", "head", "L0h1", "l-1h0"])
def test_other_words_name_no_component(name):
    with pytest.raises(ValueError, match="unknown component"):
        Component.of(name)
