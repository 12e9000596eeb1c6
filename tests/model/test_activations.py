"""Activations: those of transformers, sums of parts, sites that are not there."""

import numpy as np
import pytest
import torch

from spectrolib.dictionaries import autoencoders
from spectrolib.dictionaries.autoencoders import activations
from spectrolib.model.activations import PARTS
from spectrolib.text.corpus import bundled_windows

SITES = [f"l{layer} {part}" for layer in (0, 3, 5) for part in PARTS]


def test_activations_are_those_of_transformers(bundled):
    ids = torch.as_tensor(bundled_windows("heldout").ids[:3, :40].astype(np.int64))
    body, seen = bundled.model.gpt_neox, {}

    def keep(site):
        return lambda module, inputs, output: seen.update({site: output[0] if isinstance(output, tuple) else output})

    modules = {"embed": body.embed_in}
    for site in SITES:
        layer = body.layers[int(site[1])]
        parts = {"residual": layer, "attention": layer.attention, "mlp": layer.mlp, "neurons": layer.mlp.act}
        modules[site] = parts[site.split()[1]]
    hooks = [module.register_forward_hook(keep(site)) for site, module in modules.items()]
    with torch.no_grad():
        bundled.model(ids)
    for hook in hooks:
        hook.remove()
    for site in modules:
        found = activations(bundled, ids.numpy(), site)
        assert found.shape[:2] == (3, 40)
        np.testing.assert_allclose(found, seen[site].numpy(), atol=3e-4 * float(seen[site].abs().max()))


def test_the_residual_is_the_sum_of_its_parts(bundled_engine):
    ids = bundled_windows("heldout").ids[:2, :50]
    before, after = activations(bundled_engine, ids, "l1 residual"), activations(bundled_engine, ids, "l2 residual")
    added = activations(bundled_engine, ids, "l2 attention") + activations(bundled_engine, ids, "l2 mlp")
    np.testing.assert_allclose(before + added, after, atol=2e-4)


def test_a_site_that_is_not_there(bundled_engine):
    ids = bundled_windows("heldout").ids[:1]
    for site in ("l3", "residual 3", "l3 resid"):
        with pytest.raises(ValueError, match="must be 'embed' or like 'l3 residual'"):
            activations(bundled_engine, ids, site)
    with pytest.raises(ValueError, match="beyond the model's 6 layers"):
        activations(bundled_engine, ids, "l6 mlp")


def test_the_untrained_model_has_the_same_numbers_and_has_learned_nothing(bundled, bundled_engine):
    mixed, again = autoencoders.untrained(bundled, seed=3), autoencoders.untrained(bundled, seed=3)
    for name, w in mixed.weights.items():
        assert torch.equal(w, again.weights[name])
        assert torch.equal(w.flatten().sort().values, bundled_engine.weights[name].flatten().sort().values)
    windows = bundled_windows("heldout").take(slice(0, 40, 4)).cut(65)
    assert bundled_engine.losses(windows).mean() < 4 < np.log(4096) - 1 < mixed.losses(windows).mean()
