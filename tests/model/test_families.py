"""Other families than GPT-NeoX: losses and gradients of transformers, components that partition the weights."""

import dataclasses
import re

import numpy as np
import pytest
import torch
from families import KINDS, random_model
from measuring import SETTINGS, Inline
from measuring import windows as some_windows
from reference import Reference
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode

from spectrolib.model.activations import activations
from spectrolib.model.components import blocks, check_component, components, names
from spectrolib.model.engine import groups
from spectrolib.model.layers import Rotary
from spectrolib.model.loading import LanguageModel, engine_of, load_model
from spectrolib.model.shapes import Shape, tensors
from spectrolib.run import cost
from spectrolib.run.measure import measure
from spectrolib.run.plan import Plan, Task
from spectrolib.run.tasks import Job, run_task


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def model(kind):
    return random_model(kind)


@pytest.fixture(scope="module")
def engine(model):
    return engine_of(model)


@pytest.fixture(scope="module")
def reference(model):
    return Reference(model)


@pytest.fixture(scope="module")
def windows():
    return np.random.default_rng(0).integers(0, 53, size=(5, 12))


def close(got, expected):
    return (got.double() - expected).norm() < 1e-5 * expected.norm()


def every_component(shape):
    """With single heads where `names` lists groups."""
    heads = [f"l{layer}h{head}" for layer in range(shape.layers) for head in range(shape.heads)]
    return [*dict.fromkeys([*names(shape), *heads]), "full"]


def test_losses_at_the_trained_weights(engine, reference, windows):
    expected = reference.losses(reference.weights, windows)
    assert 3 < expected.mean() < 30 and expected.std() > 1
    assert close(engine.losses(windows), expected)


@pytest.mark.parametrize("tokens_per_pass", [25, 1024])
def test_losses_and_gradients_of_every_component(model, reference, windows, tokens_per_pass):
    """Moved away from w*, all components of a layer together, in passes that split windows and members unevenly."""
    engine = engine_of(model)
    engine.tokens_per_pass = tokens_per_pass
    at_rest = reference.losses(reference.weights, windows)
    rows = np.arange(len(windows))
    for together in groups(every_component(engine.shape)):
        group = engine.group(together)
        generator = torch.Generator().manual_seed(1)
        positions = [w + 0.1 * torch.randn(w.shape, generator=generator) for w in group.start]
        cached = group.cache(windows)
        losses = group.losses(positions, cached)
        means, slopes = group.gradients(positions, cached, rows)
        for i, name in enumerate(together):
            expected = reference.at(group.blocks[name], positions[i], windows)
            loss, gradient = reference.gradient(group.blocks[name], positions[i], windows)
            assert (expected - at_rest).norm() > 1e-3 * at_rest.norm(), name  # it matters here
            assert close(losses[i], expected), name
            assert means[i] == pytest.approx(loss, rel=1e-6), name
            assert close(slopes[i], gradient), name


def test_components_partition_what_they_should(kind, engine):
    """No element is in two; those in none are norms, positions and the bias of the projection after attention."""
    counts = {name: torch.zeros(w.shape, dtype=torch.int64) for name, w in engine.weights.items()}
    for component in names(engine.shape):
        for block in blocks(component, engine.shape):
            block.of(counts).add_(1)
    whole = {name for name, count in counts.items() if (count == 1).all()}
    none = {name for name, count in counts.items() if (count == 0).all()}
    assert whole | none == set(counts)
    kept = r"norm|ln_.|wpe|(attn\.c_proj|o_proj|attention\.dense)\.bias"
    assert none == {name for name in counts if re.search(kept, name)}
    shape = engine.shape
    tied = "tied" in kind.split() or kind in ("gpt2", "qwen3", "llama grouped, tied")
    assert len(names(shape)) == shape.layers * (shape.groups + 1) + (1 if tied else 2)


@pytest.mark.parametrize("kind", [kind for kind, (_, config) in KINDS.items() if "head_dim" not in config])
def test_blocks_are_the_masks_of_the_authors_library(kind):
    """Where a head's size is width / heads, as devinterp 2.0.1 has it."""
    masks_of = pytest.importorskip("devinterp.slt.weight_restrictions").create_param_masks
    model = random_model(kind)
    shape = engine_of(model).shape
    parameters = dict(model.named_parameters())
    for component in every_component(shape):
        if component in ("unembed", "full"):  # devinterp does not find the first under transformers 5's name
            continue
        theirs = {
            name: torch.ones_like(parameters[name], dtype=torch.bool) if mask is None else mask.bool()
            for name, mask in masks_of(model, component).items()
        }
        ours = {
            block.parameter: torch.zeros(parameters[block.parameter].shape, dtype=torch.bool)
            for block in blocks(component, shape)
        }
        for block in blocks(component, shape):
            block.of(ours).fill_(True)
        left_out = {
            name for name in ours if kind == "llama with biases" and name.endswith("bias")
        }  # it knows none there
        assert set(theirs) == set(ours) - left_out, component
        assert all(torch.equal(ours[name], mask) for name, mask in theirs.items()), component


def test_a_folder_holds_the_same_model(kind, model, engine, windows, tmp_path):
    model.save_pretrained(tmp_path)
    found = load_model(tmp_path, device="cpu")
    assert found.shape == engine.shape
    assert list(found.weights) == list(engine.weights) == [name for name, _ in tensors(engine.shape)]
    assert all(torch.equal(w, engine.weights[name]) for name, w in found.weights.items())
    assert components(found) == names(engine.shape)


def test_gpt2_as_the_hub_has_it(tmp_path):
    """Its files leave out the prefix ``transformer.`` and hold the causal mask; its configuration does not say tied."""
    model = random_model("gpt2")
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    stored = {name.removeprefix("transformer."): w for name, w in stored.items()}
    stored["h.0.attn.bias"] = torch.tril(torch.ones(1, 1, 16, 16))
    save_file(stored, tmp_path / "model.safetensors")
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(re.sub(r'\s*"tie_word_embeddings": true,', "", config))
    found = load_model(tmp_path, device="cpu").weights
    assert all(torch.equal(found[name], w.detach()) for name, w in model.named_parameters())


def test_windows_longer_than_the_model_reads_are_refused():
    engine = engine_of(random_model("gpt2"))
    assert engine.losses(np.zeros((1, 17), dtype=int)).shape == (1, 16)
    with pytest.raises(ValueError, match="at most 17 tokens, got 18: the model reads 16 at once"):
        engine.ids(np.zeros((1, 18), dtype=int))
    assert engine_of(random_model("mistral")).shape.longest == 64
    assert activations(engine, np.zeros((1, 16), dtype=int), "l1 mlp").shape == (1, 16, 24)
    with pytest.raises(ValueError, match="at most 16 tokens to be read whole, got 17"):
        activations(engine, np.zeros((1, 17), dtype=int), "l1 mlp")


def test_a_plan_with_windows_that_are_too_long_is_refused():
    text = [within_vocabulary(some_windows(seed, 4, length=20)) for seed in range(3)]
    with pytest.raises(ValueError, match=r"the sampling windows hold 20 tokens, .* cut windows of at most 17"):
        Plan(LanguageModel(random_model("gpt2"), None, "gpt2"), *text, SETTINGS)


def test_llama_3_stretches_rotations_as_transformers_does():
    model = random_model("llama 3")
    rotary = Rotary(engine_of(model).shape, torch.device("cpu"))
    torch.testing.assert_close(rotary.frequencies, model.model.rotary_emb.inv_freq)
    assert not torch.allclose(
        rotary.frequencies, Rotary(engine_of(random_model("llama")).shape, torch.device("cpu")).frequencies
    )


def test_a_head_among_those_that_share_its_keys():
    """It holds its query and output, and the shared keys and values: what it overlaps with its group is all of it."""
    shape = engine_of(random_model("qwen2")).shape
    assert names(shape)[:4] == ["l0g0", "l0g1", "l1g0", "l1g1"]
    head, group = ({(b.parameter, str(b.index)) for b in blocks(name, shape)} for name in ("l1h3", "l1g1"))
    shared = {name for name, _ in head & group}
    assert shared == {f"model.layers.1.self_attn.{part}_proj.{kind}" for part in "kv" for kind in ("weight", "bias")}
    with pytest.raises(ValueError, match="heads l0h0 to l1h3, groups l0g0 to l1g1, MLPs"):
        check_component("l0g2", shape)


def test_tied_embeddings_are_one_component():
    with pytest.raises(ValueError, match="'embed' \\(which is the unembedding too\\)"):
        check_component("unembed", engine_of(random_model("gpt2")).shape)


@pytest.mark.parametrize(
    "kind, changes, message",
    [
        ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights is False"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
        ("llama", {"rope_scaling": {"rope_type": "yarn"}, "rope_parameters": None}, "type 'yarn' is not supported"),
        ("llama", {"num_key_value_heads": 3}, "4 query heads cannot share 3 heads of keys and values evenly"),
        ("qwen2", {"hidden_act": "mish"}, "activation 'mish' is not supported"),
        ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
    ],
)
def test_kinds_that_the_engine_cannot_run_are_refused(kind, changes, message):
    with pytest.raises(ValueError, match=message):
        Shape.from_config(random_model(kind).config.to_dict() | changes)


def within_vocabulary(windows):
    return dataclasses.replace(windows, ids=windows.ids % 53)


@pytest.mark.parametrize("kind", ["gpt2", "llama grouped, tied"])
def test_measured_from_end_to_end(kind, tmp_path):
    """The task loads the model from a folder that the run keeps."""
    texts = [within_vocabulary(some_windows(seed, count)) for seed, count in enumerate((20, 4, 6))]
    plan = Plan(LanguageModel(random_model(kind), None, kind), *texts, SETTINGS)
    result = measure(plan, tmp_path / "run", executor=Inline(), progress=False)
    assert list(result.component.values) == names(plan.shape)
    assert np.isfinite(result.susceptibility).all() and (result.susceptibility.std("token") > 0).all()
    np.testing.assert_allclose(result.loss, engine_of(plan.model).losses(plan.probe).flatten(), rtol=1e-6)


@pytest.mark.parametrize("kind", ["gpt2", "llama grouped, tied", "qwen2"])
def test_operations_agree_with_torchs_counter(kind):
    """Of every task of a small measurement; ours leave out half of the attention, which is causal."""
    wide = dict(n_embd=48, vocab_size=400) if kind == "gpt2" else dict(hidden_size=48, vocab_size=400)
    shape = Shape.from_config(random_model(kind, **wide).config.to_dict())
    engine = engine_of(random_model(kind, **wide))
    rng = np.random.default_rng(0)
    sampling, loss, probe = (rng.integers(0, 400, (count, 17)) for count in (12, 5, 10))
    settings = dataclasses.replace(SETTINGS, chains=1, draws=2, tilt=10.0, antithetic=True)
    job = Job("", "cpu", sampling, loss, probe, settings, 1)
    work = cost.Work(shape, 160, settings, 17, 80, 12, blocks=1)
    in_place = {torch.ops.aten.addmm_: lambda out, a, b, *_, **__: 2 * a[0] * a[1] * b[1]}
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        for group in work.groups:
            run_task(engine, job, Task(group, 0))
    assert cost.operations(work) == pytest.approx(counter.get_total_flops(), rel=0.05)
