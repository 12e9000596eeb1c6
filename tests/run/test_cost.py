"""The cost model: against torch's own counter, the plan's, published sizes, and runs that were timed."""

import math
from dataclasses import replace

import measuring
import numpy as np
import pytest
import torch
from measuring import Inline, files, odd_plan, plan
from torch.utils.flop_counter import FlopCounterMode

from spectrobook import scale
from spectrobook.making.neox import Architecture, initial_weights
from spectrolib.estimator import CovarianceSums
from spectrolib.model import shapes
from spectrolib.model.engine import Engine
from spectrolib.model.shapes import Shape
from spectrolib.posterior import Settings
from spectrolib.run import cost
from spectrolib.run.measure import measure
from spectrolib.run.plan import Task
from spectrolib.run.tasks import Job, run_task

SMALL = Architecture(layers=2, heads=4, width=64, mlp=256, vocabulary=400)


H200 = cost.CARDS["h200"]


def work(model: str = "pythia-14m", tokens: int = 20_000, **changes) -> cost.Work:
    return cost.Work(shapes.PYTHIA[model], tokens, **changes)


# Shapes


@pytest.mark.parametrize(
    ("name", "weights", "components"),
    [
        ("pythia-14m", 14_067_712, 32),
        ("pythia-31m", 30_494_720, 56),
        ("pythia-70m", 70_426_624, 56),
        ("pythia-160m", 162_322_944, 158),
        ("pythia-410m", 405_334_016, 410),
        ("pythia-1b", 1_011_781_632, 146),
        ("pythia-1.4b", 1_414_647_808, 410),
        ("pythia-2.8b", 2_775_208_960, 1058),
        ("pythia-6.9b", 6_857_302_016, 1058),
        ("pythia-12b", 11_846_072_320, 1478),
    ],
)
def test_sizes_are_those_of_the_family(name, weights, components):
    """The totals that the makers of Pythia publish; the numbers of components of the paper and of its rule."""
    assert cost.parameters(cost.shape_of(f"EleutherAI/{name}-deduped")) == weights
    assert len(cost.Work(cost.shape_of(name), 1).components) == components


@pytest.mark.parametrize(
    ("name", "weights", "components"),
    [
        ("openai-community/gpt2", 124_439_808, 157),
        ("gpt2-medium", 354_823_168, 409),
        ("gpt2-large", 774_030_080, 757),
        ("gpt2-xl", 1_557_611_200, 1249),
        ("HuggingFaceTB/SmolLM2-135M", 134_515_008, 121),
        ("meta-llama/Llama-3.2-1B", 1_235_814_400, 145),
        ("Qwen/Qwen2.5-0.5B", 494_032_768, 73),
        ("Qwen/Qwen3-0.6B", 596_049_920, 253),
    ],
)
def test_sizes_of_other_families_are_those_that_their_makers_publish(name, weights, components):
    """Components: groups of heads in each layer, its MLP, and the embedding that is the unembedding too."""
    shape = cost.shape_of(name)
    assert cost.parameters(shape) == weights
    assert len(cost.Work(shape, 1).components) == components == shape.layers * (shape.groups + 1) + 1


def test_the_bundled_model_and_folders_have_their_own_shape():
    from spectrolib.model.loading import load_model

    assert cost.shape_of("bundled") == scale.shape_named("bundled") == load_model("bundled", device="cpu").shape
    assert cost.shape_of(str(load_model("bundled").path)) == scale.shape_named("bundled")


# Operations


@pytest.mark.parametrize(
    "changes",
    [
        {"antithetic": True, "tilt": 10.0, "burn_in": 1},
        {"preconditioner": "rmsprop", "step_size": 1e-4},
        {"nbeta": 0.0},
    ],
    ids=["team", "rmsprop", "control"],
)
def test_operations_of_a_whole_measurement_agree_with_torchs_counter(changes):
    """Every task is run, and torch counts the products; ours leave out half of the attention, which is causal."""
    shape, length = Shape.from_config(SMALL.config()), 17
    engine, rng = Engine(shape, initial_weights(SMALL, 0)), np.random.default_rng(0)
    sampling, loss, probe = (rng.integers(0, 400, (count, length)) for count in (12, 5, 10))
    common = {"step_size": 1e-3, "preconditioner": "none", "batch_size": 4, "chains": 1, "draws": 2}
    settings = Settings(**common | {"steps_between_draws": 3} | changes)
    job = Job("", "cpu", sampling, loss, probe, settings, 1)
    here = cost.Work(shape, 160, settings, length, 80, 12, blocks=1)
    in_place = {torch.ops.aten.addmm_: lambda out, a, b, *_, **__: 2 * a[0] * a[1] * b[1]}
    counted = {}
    for group in here.groups:
        with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
            run_task(engine, job, Task(group, 0))
        counted[group] = counter.get_total_flops()
    assert cost.operations(here) == pytest.approx(sum(counted.values()), rel=0.03)
    for group in here.groups:
        rest = tuple(name for name in here.components if name not in group)
        others = replace(here, components=rest) if group[0] != "full" else None
        if others is not None:
            assert cost.operations(here) - cost.operations(others) == pytest.approx(counted[group], rel=0.06)


def test_steps_and_draws_are_counted_as_the_plan_counts_them(tmp_path):
    from conftest import random_gpt_neox

    shape = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": measuring.VOCABULARY}
    random_gpt_neox(**shape).save_pretrained(tmp_path)
    for settings in (measuring.SETTINGS, replace(measuring.SETTINGS, antithetic=True, tilt=5.0, nbeta=5.0)):
        plan = measuring.plan(tmp_path, settings)
        found = cost.Work.of(plan)
        mine = sum(part.operations for part in cost.breakdown(found) if part.activity != "at w*")
        assert mine == pytest.approx(settings.chains * sum(map(found.operations, found.groups)), rel=1e-12)
        assert mine < cost.of(plan).operations, "what is done once at w* is counted too"
        assert len(found.groups) * settings.chains == cost.of(plan).tasks


def test_cost_grows_as_it_must():
    few, many = work(tokens=20_000), work(tokens=40_000)
    losses = lambda w: sum(p.operations for p in cost.breakdown(w) if p.activity == "probe losses")  # noqa: E731
    assert losses(many) == pytest.approx(2 * losses(few))
    steps = lambda w: sum(p.operations for p in cost.breakdown(w) if p.activity == "steps")  # noqa: E731
    assert steps(many) == steps(few)
    twice = replace(few, settings=replace(few.settings, chains=8))
    assert cost.operations(twice) == pytest.approx(2 * cost.operations(few))
    by_kind = {part.kind for part in cost.breakdown(few)}
    assert by_kind == set(cost.KINDS)


# Time


def test_hours_are_the_larger_of_compute_and_memory():
    """A job of one activity only, by hand: losses of the unembedding, with hardly any loss windows."""
    job = work(tokens=10**9, loss_tokens=1, components=("unembed",))
    found = cost.breakdown(job)
    slow = replace(H200, rates={"float32": 1.0, "tf32": 1.0, "bf16": 1.0}, bandwidth=1e30)
    narrow = replace(H200, rates={"float32": 1e30, "tf32": 1e30, "bf16": 1e30}, bandwidth=1.0)
    compute = cost.hours(job, slow, efficiency=1.0)
    assert compute.hours * 3600 == pytest.approx(cost.operations(job))
    assert set(compute.bound.values()) == {"compute"}
    memory = cost.hours(job, narrow, "bf16", efficiency=0.5)
    assert memory.hours * 3600 == pytest.approx(2 * 2 * sum(part.numbers for part in found))
    assert set(memory.bound.values()) == {"memory"}
    assert memory.low < memory.hours < memory.high
    assert sum(memory.share.values()) == pytest.approx(1)


def test_hours_of_a_plan_are_those_of_its_operations(tmp_path):
    """Where bytes cost nothing: chains in one shard and in three, and gradients."""
    from conftest import random_gpt_neox

    shape = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": measuring.VOCABULARY}
    random_gpt_neox(**shape).save_pretrained(tmp_path)
    slow = replace(H200, rates={"float32": 1e6, "tf32": 1.0, "bf16": 1.0}, bandwidth=1e30)
    for changes in ({}, {"shards": 3}, {"first_order": True}):
        plan = measuring.plan(tmp_path, **changes)
        found = cost.hours_of(plan, slow, efficiency=0.5)
        assert found.hours * 3600 == pytest.approx(cost.of(plan).operations / 1e6 / 0.5)
        assert found.low < found.hours < found.high and sum(found.share.values()) == pytest.approx(1)


# Memory and disk


def test_disk_is_what_the_running_sums_and_the_result_hold(tmp_path):
    from conftest import random_gpt_neox

    from spectrolib.run.measure import measure

    sums = CovarianceSums(1000)
    held = sum(np.asarray(getattr(sums, name)).nbytes for name in CovarianceSums.VECTORS)
    assert held == cost.SUM_BYTES * 1000
    shape = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": measuring.VOCABULARY}
    random_gpt_neox(**shape).save_pretrained(tmp_path / "model")
    plan = measuring.plan(tmp_path / "model", replace(measuring.SETTINGS, draws=2, steps_between_draws=1))
    result = measure(plan, tmp_path / "run", executor=measuring.Inline(), progress=False)
    tables = sum(values.nbytes for values in result.data_vars.values() if {"token", "component"} <= set(values.dims))
    assert cost.disk(cost.Work.of(plan))["result"] == tables + result["resolved"].nbytes


def test_what_does_not_fit_fits_in_shorter_passes_and_parts():
    job = work("pythia-1.4b", 4_250_000, settings=scale.PUBLISHED.settings)
    needed = sum(cost.memory(job).values())
    assert needed > 80e9
    for limit in (30e9, 80e9, 141e9, 1e15):
        found = cost.fit(job, limit)
        if found is None:
            continue
        part = replace(job, tokens=math.ceil(job.tokens / found.parts))
        assert sum(cost.memory(part, tokens_per_pass=found.tokens_per_pass).values()) <= limit
    assert found == cost.Fit(65_536, 1)
    assert cost.fit(job, 1e9) is None


# Graph and clusters


def test_clustering_times_pass_through_what_was_measured():
    for tokens, seconds in cost.clustering_timings()["clusters"].items():
        assert cost.clustering_seconds(tokens) == pytest.approx(seconds)
    for tokens, seconds in cost.clustering_timings()["graph"].items():
        assert cost.graph_seconds(tokens) == pytest.approx(seconds)
        assert cost.graph_seconds(tokens, 64) == pytest.approx(2 * seconds)
    sizes = np.geomspace(1e3, 1e7, 40)
    assert (np.diff([cost.clustering_seconds(n) for n in sizes]) > 0).all()
    assert cost.graph_seconds(4_800_000) == pytest.approx(77 * 16**1.5)


@pytest.mark.parametrize(("text", "value"), [("20000", 20_000), ("20k", 20_000), ("4.25M", 4_250_000), ("1e6", 10**6)])
def test_counts_as_people_write_them(text, value):
    assert cost.count_of(text) == value


def test_cost_counts_draws_and_steps(folder):
    found = cost.of(plan(folder))
    assert found.tasks == 10
    assert found.steps == 9 * 2 * (2 + 8 * 3)
    assert found.token_steps == found.steps * 4 * 8
    assert found.token_evaluations == 9 * 2 * 8 * (6 + 4) * 8
    assert found.seconds(2) == pytest.approx(found.seconds(1) / 2)


# A bound on the memory of a worker


def test_a_bound_on_memory_fixes_the_shards(odd_folder, odd_whole, tmp_path):
    job = odd_plan(odd_folder)
    most, least = (sum(cost.need(replace(job, shards=n)).values()) for n in (1, 5))
    assert most > least
    assert cost.within(job, most).shards == 1 and cost.within(job, most).tokens_per_pass == 23
    for limit in np.linspace(least, most, 7):
        assert sum(cost.need(cost.within(job, limit)).values()) <= limit
    assert cost.within(replace(job, shards=4), most).shards == 4
    measure(job, tmp_path / "run", memory=least, executor=Inline(), progress=False)
    assert len(list((tmp_path / "run" / "tasks").iterdir())) == 6 * 5
    assert files(tmp_path / "run" / "result.zarr") == files(odd_whole / "result.zarr")
    with pytest.raises(
        ValueError, match=r"a worker needs at least [\d.]+ MB of memory, more than 1 MB: model .*--plain"
    ):
        measure(job, tmp_path / "other", memory=1e6, executor=Inline(), progress=False)
    assert not (tmp_path / "other").exists()


def test_the_largest_shard_is_counted():
    """The count for a shard is that of a measurement of its tokens alone."""
    job = cost.Work(shapes.PYTHIA["pythia-14m"], 100 * 256, length=257)
    assert cost._largest(job, 8192, 1) == job
    for shards, windows in ((2, 64 + 4 - 32), (3, 32 + 4), (99, 32 + 4)):
        assert cost._largest(job, 8192, shards).tokens == 256 * max(windows, 32 * -(-3 // shards))


@pytest.mark.parametrize(
    ("text", "value"), [("4GB", 4e9), ("512 MB", 512e6), ("1.5g", 1.5e9), ("8GiB", 8 * 2**30), ("100k", 1e5), ("7", 7)]
)
def test_sizes_of_memory_as_people_write_them(text, value):
    assert cost.bytes_of(text) == value


@pytest.mark.parametrize("text", ["much", "-4GB", "0", "4 gallons", ""])
def test_what_is_no_size_of_memory_is_refused(text):
    with pytest.raises(ValueError, match="is no size of memory: write it like 4GB"):
        cost.bytes_of(text)


def test_each_shard_repeats_the_chains_and_not_the_losses(odd_folder):
    one, many = cost.of(odd_plan(odd_folder)), cost.of(odd_plan(odd_folder, shards=3))
    assert many.tasks == 3 * one.tasks and many.steps == 3 * one.steps and many.token_steps == 3 * one.token_steps
    assert one.token_evaluations < many.token_evaluations < 3 * one.token_evaluations
    assert one.operations < many.operations < 3 * one.operations
