"""A result: the right numbers, labelled, put together from any number of chains in little memory."""

import json
import sys
import tracemalloc
from dataclasses import replace

import measuring
import numpy as np
import pytest
import torch
from conftest import random_gpt_neox
from measuring import SETTINGS, Inline, odd_plan, plan, random_record
from reference import put

from spectrolib.checks.diagnostics import column_reliability
from spectrolib.estimator import ESTIMATORS, susceptibility, with_estimator
from spectrolib.model.components import blocks
from spectrolib.model.loading import LanguageModel, engine_of
from spectrolib.posterior import sample
from spectrolib.run.measure import measure
from spectrolib.run.result import _halves, assemble
from spectrolib.run.store import RunFolder
from spectrolib.text.corpus import Windows


def test_the_one_chain_value_takes_no_unrestricted_chain_and_comes_with_the_other(folder, tmp_path):
    few = replace(SETTINGS, draws=3, tilt=5.0)
    both, alone = (
        measure(plan(folder, few, estimator=name), tmp_path / name, executor=Inline(), progress=False)
        for name in ("two_chain", "one_chain")
    )
    found = with_estimator(both, "one_chain")
    np.testing.assert_allclose(found.susceptibility, alone.susceptibility, rtol=1e-12, atol=1e-15)
    assert found.attrs["estimator"] == "one_chain" and "standard_error" not in found
    assert with_estimator(both, "two_chain") is both
    with pytest.raises(ValueError, match="unknown estimator 'three'"):
        with_estimator(both, "three")

    assert alone["sampled"].values.tolist() == alone["component"].values.tolist()
    assert not list((tmp_path / "one_chain").rglob("full*")) and list((tmp_path / "two_chain").rglob("full*"))
    assert "full_moment" not in alone and alone["estimator"].values.tolist() == ["one_chain"]
    for name in ("covariance", "restricted_moment", "loss_rise", "resolved"):
        np.testing.assert_array_equal(
            alone[name], both[name].sel(sampled=alone["sampled"]) if name == "loss_rise" else both[name]
        )
    np.testing.assert_array_equal(
        alone["half_susceptibility"], both["half_susceptibility"].sel(estimator=["one_chain"])
    )
    assert (alone["standard_error"] > 0).all()
    assert column_reliability(alone).shape == (8,)
    for ask in (lambda: with_estimator(alone, "two_chain"), lambda: column_reliability(alone, "two_chain")):
        with pytest.raises(ValueError, match="unrestricted chain"):
            ask()


def test_the_result_is_what_the_formula_says_of_the_draws(folder, tmp_path):
    """The two-chain formula, term by term, on the draws of `posterior.sample`, evaluated by transformers."""
    few = replace(SETTINGS, draws=4)
    job = plan(folder, few, components=("l1h0", "embed"))
    result = measure(job, tmp_path / "run", executor=Inline(), progress=False)
    module = (
        random_gpt_neox(hidden_size=16, num_attention_heads=2, intermediate_size=32, vocab_size=64)
        .double()
        .requires_grad_(False)
    )
    model = LanguageModel(module, None, "reference")

    def losses(windows: Windows) -> np.ndarray:
        ids = torch.as_tensor(windows.ids, dtype=torch.int64)
        logits = module(ids[:, :-1]).logits
        return torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none").numpy()

    def observe(component: str) -> tuple[np.ndarray, np.ndarray]:
        """g of every draw, and l - L of every draw and token."""
        start = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        names = {"embed_out.weight": "lm_head.weight"} if "lm_head.weight" in start else {}
        weights = engine_of(model).weights
        parts = blocks(component, job.shape, tuple(weights))
        before = losses(job.loss).mean()
        g, d = [], []
        for chain in range(few.chains):
            for draw in sample(job.model, few, component=component, windows=job.sampling, chain=chain):
                moved = put(weights, parts, draw.position.double())
                module.load_state_dict({names.get(name, name): tensor for name, tensor in moved.items()})
                g.append(losses(job.loss).mean() - before)
                d.append(losses(job.probe).flatten() - losses(job.loss).mean())
            module.load_state_dict(start)
        return np.array(g), np.array(d)

    _, full = observe("full")
    for component in ("l1h0", "embed"):
        g, d = observe(component)
        np.testing.assert_allclose(result["loss_rise"].sel(sampled=component).values.flatten(), g, atol=2e-5)
        expected = -((g[:, None] * d).mean(axis=0) - g.mean() * full.mean(axis=0))
        column = result["susceptibility"].sel(component=component).values
        np.testing.assert_allclose(column, expected, atol=2e-4 * np.abs(expected).max())
        covariance = (g[:, None] * d).mean(axis=0) - g.mean() * d.mean(axis=0)
        np.testing.assert_allclose(
            result["covariance"].sel(component=component), covariance, atol=2e-3 * np.abs(covariance).max()
        )


def test_the_terms_add_up_and_every_entry_is_labelled(folder, whole):
    job = plan(folder)
    result = measure(job, whole, progress=False)
    assert dict(result.sizes) == {
        "token": 6 * 8,
        "component": 8,
        "channel": 8 * 8,
        "control": 2,
        "sampled": 9,
        "chain": 2,
        "draw": 8,
        "estimator": 2,
        "half": 2,
        "block": 2,
    }
    rise = result["rise"].sel(sampled=result["component"].values).values
    sum_of_terms = -(
        result["covariance"] + rise * (result["restricted_moment"] - result["full_moment"])
    )  # the start value d(w*) drops out of the difference
    np.testing.assert_allclose(result["susceptibility"], sum_of_terms, rtol=1e-12)
    np.testing.assert_array_equal(result["token_id"], job.probe.ids[:, 1:].flatten())
    np.testing.assert_array_equal(result["sequence"], np.repeat(np.arange(6), 8))
    np.testing.assert_array_equal(result["position"], np.tile(np.arange(1, 9), 6))
    np.testing.assert_array_equal(result["domain"], np.repeat(job.probe.domain, 8))
    np.testing.assert_array_equal(result["document"], np.repeat(job.probe.document, 8))
    assert result["block"].values.tolist() == [4, 8]
    assert json.loads(result.attrs["manifest"]) == json.loads((whole / "manifest.json").read_text())
    assert (result["standard_error"] > 0).all()


def test_one_chain_has_neither_error_bars_nor_halves(folder, tmp_path):
    job = plan(folder, replace(SETTINGS, chains=1, draws=2), components=("l0 mlp",), blocks=1)
    result = measure(job, tmp_path / "run", executor=Inline(), progress=False)
    assert np.isnan(result["standard_error"]).all()
    assert "half_susceptibility" not in result


def test_halves_are_the_chains_of_even_and_of_odd_number():
    rng = np.random.default_rng(0)
    own, full = ([random_record(rng, 5) for _ in range(5)] for _ in range(2))
    found = _halves(ESTIMATORS, own, full)
    for kind, of_kind in zip(ESTIMATORS, found, strict=True):
        for half, numbers in enumerate(((0, 2, 4), (1, 3))):
            for block, estimate in enumerate(of_kind[half], 1):
                chains = ([part[i].pooled(block) for i in numbers] for part in (own, full))
                np.testing.assert_allclose(estimate, susceptibility(kind, *chains), rtol=1e-12)


def test_blocks_are_named_by_the_draws_that_they_hold(folder, tmp_path):
    """Where draws do not divide evenly, too."""
    job = plan(folder, replace(SETTINGS, chains=1, draws=5), components=("unembed",), estimator="one_chain", blocks=3)
    result = measure(job, tmp_path / "run", executor=Inline(), progress=False)
    (record,) = RunFolder(tmp_path / "run", job.manifest()).load_task("unembed.chain0").values()
    assert result["block"].values.tolist() == np.cumsum([sums.count for sums in record.sums]).tolist() == [2, 4, 5]


room = sys.modules["spectrolib.run.result"]


def test_putting_a_result_together_takes_as_much_memory_for_many_chains_as_for_few(odd_folder, tmp_path, monkeypatch):
    """Little more than the result, while the partial sums are many times that."""
    monkeypatch.setattr(room, "SLAB_BYTES", 2**19)
    monkeypatch.setattr(room, "_start_losses", lambda odd_plan: np.zeros(6 * 1500, dtype=np.float32))
    peaks, size, probe = {}, 0, measuring.windows(2, 1500, length=7)
    for chains in (2, 6):
        job = odd_plan(odd_folder, probe=probe, components=(), tokens_per_pass=None, shards=2, channels=0)
        job = replace(job, settings=replace(job.settings, chains=chains))
        run, rng = RunFolder(tmp_path / f"{chains}", job.manifest()), np.random.default_rng(0)
        for task in job.tasks:
            tokens = 6 * (task.windows[1] - task.windows[0])
            run.save_task(task.name, {name: random_record(rng, tokens) for name in task.components})
        seen = []
        for _ in range(2):  # the lesser: in one of them Python may enlarge a table of its own, by megabytes
            tracemalloc.start()
            size = sum(values.nbytes for values in assemble(job, run).variables.values())
            seen.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        peaks[chains] = min(seen)
    held = sum(file.stat().st_size for file in (tmp_path / "6" / "tasks").iterdir())
    assert held > 6 * size
    assert peaks[6] < 1.15 * peaks[2]  # an index of each file
    assert peaks[6] < 1.5 * size


def test_a_result_from_many_slabs_is_that_from_one(odd_folder, odd_whole, monkeypatch):
    """121 tokens in 41 slabs."""
    job = odd_plan(odd_folder)
    expected = assemble(job, RunFolder(odd_whole, job.manifest()))
    monkeypatch.setattr(room, "SLAB_BYTES", 8 * room.SUM_BYTES * 3)
    assert len(room._slabs(121, 4)) == 41
    assert assemble(job, RunFolder(odd_whole, job.manifest())).identical(expected)
