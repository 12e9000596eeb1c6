"""Silenced components: against hooks on transformers' own modules, in float64, for every family."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from families import KINDS, random_model

from spectrolib.model.ablation import silenceable, silenced_losses
from spectrolib.model.components import Component, Heads, names
from spectrolib.model.loading import engine_of

WINDOWS = np.random.default_rng(0).integers(0, 53, size=(5, 12))
OUT = {"gpt2": "attn.c_proj", "gpt_neox": "attention.dense"}


def by_hooks(model, name: str, windows=WINDOWS) -> torch.Tensor:
    """Losses in float64 with the component's output at its mean, the modules being transformers' own."""
    double, shape = copy.deepcopy(model).double(), engine_of(model).shape
    component = Component.of(name)
    base = double.base_model
    layer = (base.h if hasattr(base, "h") else base.layers)[component.layer]
    ids = torch.as_tensor(windows)
    if component.kind == "mlp":
        register = layer.mlp.register_forward_hook
        read = lambda module, given, output: output  # noqa: E731
        columns = slice(None)
    else:
        module = layer.get_submodule(OUT.get(model.config.model_type, "self_attn.o_proj"))
        register = module.register_forward_pre_hook
        read = lambda module, given: given[0]  # noqa: E731
        columns = Heads.of(component, shape).columns(shape)
    seen = []
    with torch.no_grad():
        hook = register(lambda *what: seen.append(read(*what)))
        double(ids[:, :-1])
        hook.remove()
        mean = seen[0].flatten(0, 1).mean(dim=0)[columns]

        def silence(*what):
            x = read(*what).clone()
            x[..., columns] = mean
            return x if component.kind == "mlp" else (x,)

        register(silence)
        logits = double(ids[:, :-1]).logits
    return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(len(ids), -1)


@pytest.mark.parametrize("kind", ["gpt_neox", *KINDS])
@pytest.mark.parametrize("tokens_per_pass", [25, 1024])
def test_silenced_losses_are_those_of_transformers(kind, tokens_per_pass, tiny_gpt_neox):
    """All components of all layers at once, single heads of groups too, in passes that split the text unevenly."""
    model = tiny_gpt_neox if kind == "gpt_neox" else random_model(kind)
    engine = engine_of(model)
    engine.tokens_per_pass = tokens_per_pass
    shared = ["l1h1"] if engine.shape.shared > 1 else []
    wanted = [*silenceable(names(engine.shape)), *shared]
    at_rest = engine.losses(WINDOWS).double()
    for name, found in zip(wanted, silenced_losses(engine, wanted, WINDOWS), strict=True):
        expected = by_hooks(model, name)
        assert (expected - at_rest).norm() > 1e-3 * at_rest.norm(), name
        assert (found.double() - expected).norm() < 1e-5 * expected.norm(), name


def test_components_that_can_be_silenced(bundled):
    known = silenceable(names(bundled.shape))
    assert len(known) == 30 and "l0 mlp" in known and not {"embed", "unembed"} & set(known)


def test_a_component_that_says_the_same_everywhere_is_silent_already(tiny_gpt_neox):
    """An MLP whose second matrix is zero adds its bias alone: its mean."""
    model = copy.deepcopy(tiny_gpt_neox)
    model.gpt_neox.layers[0].mlp.dense_4h_to_h.weight.data.zero_()
    engine = engine_of(model)
    torch.testing.assert_close(silenced_losses(engine, ["l0 mlp"], WINDOWS)[0], engine.losses(WINDOWS))


def test_progress_counts_every_token(tiny_gpt_neox):
    seen = []
    silenced_losses(engine_of(tiny_gpt_neox), ["l0h1", "l1 mlp"], WINDOWS, seen.append)
    assert sum(seen) == 2 * WINDOWS[:, 1:].size


@pytest.mark.parametrize("name", ["embed", "unembed", "full"])
def test_what_has_no_output_of_its_own_is_refused(name, tiny_gpt_neox):
    with pytest.raises(ValueError, match=f"'{name}' cannot be silenced: only heads, groups of heads and MLPs can"):
        silenced_losses(engine_of(tiny_gpt_neox), ["l0h0", name], WINDOWS)
