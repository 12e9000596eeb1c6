"""Our chains of a component against those of devinterp 2.0.1, from the model to the losses at every draw.

Other tests compare the masks, the update and the estimator one by one. Here both libraries run whole, with the noise
silenced, so that their chains are the same up to rounding: same batches, same slice of weights, same losses.
"""

import itertools

import numpy as np
import pytest
import torch

from spectrolib.model.loading import engine_of
from spectrolib.posterior import Chain, Settings, lockstep

sampling = pytest.importorskip("devinterp.slt.sampling")
datasets = pytest.importorskip("datasets")

BATCH = 4
SETTINGS = Settings(
    nbeta=10.0, gamma=300.0, step_size=2e-3, preconditioner="none", batch_size=BATCH, draws=6, steps_between_draws=1
)
SAMPLED = np.random.default_rng(0).integers(0, 53, size=(2 * BATCH, 12))
PROBED = np.random.default_rng(1).integers(0, 53, size=(2 * BATCH, 12))


def masks(model, component):
    """devinterp's masks; `unembed` by hand, which it does not find under transformers 5's name (``lm_head``)."""
    from devinterp.slt.weight_restrictions import create_param_masks

    return {"lm_head.weight": None} if component == "unembed" else create_param_masks(model, component)


def their_draws(model, component, folder):
    """The probe windows, and their losses at every draw."""
    dataset, probe = (
        datasets.Dataset.from_dict({"input_ids": ids.tolist()}).with_format("torch") for ids in (SAMPLED, PROBED)
    )
    tree = sampling.sample(
        model=model,
        dataset=dataset,
        observables={"probe": (probe, len(PROBED) // BATCH)},
        param_masks=masks(model, component),
        lr=SETTINGS.step_size,
        n_beta=SETTINGS.nbeta,
        localization=SETTINGS.gamma,
        sampling_method="sgmcmc_sgld",
        noise_level=0.0,
        num_chains=1,
        num_draws=SETTINGS.draws,
        num_init_loss_batches=1,
        batch_size=BATCH,
        shuffle=False,
        device="cpu",
        output_path=folder / "samples.zarr",
    )
    return tree["input_ids_probe"].values, tree["loss_probe"].values[0].astype(np.float64)


def our_draws(model, component, probe, monkeypatch):
    """The same from our engine and our chain, over the same batches in the same order."""
    monkeypatch.setattr(torch.Tensor, "normal_", lambda self, generator=None: self.zero_())
    group = engine_of(model).group([component])
    cached, held = group.cache(SAMPLED), group.cache(probe)
    batches = itertools.cycle(np.split(np.arange(len(SAMPLED)), len(SAMPLED) // BATCH))
    chain = Chain(group.start[0], SETTINGS, name=component)
    draws = lockstep([chain], lambda positions: group.gradients(positions, cached, next(batches)), SETTINGS)
    return np.stack([group.losses(draw.positions, held)[0].double().numpy() for draw in draws])


@pytest.mark.filterwarnings("ignore:noise_level in SGLD:UserWarning")
@pytest.mark.parametrize("component", ["l0h1", "l1 mlp", "embed", "unembed", "full"])
def test_noiseless_chains_have_the_losses_of_devinterp(tiny_gpt_neox, tmp_path, monkeypatch, component):
    probe, theirs = their_draws(tiny_gpt_neox, component, tmp_path)
    ours = our_draws(tiny_gpt_neox, component, probe, monkeypatch)
    assert ours.shape == theirs.shape == (SETTINGS.draws, 2 * BATCH, 11)
    moved = np.abs(theirs - theirs[0]).max()
    assert moved > 1e-3  # the chain goes somewhere
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-3 * moved)
