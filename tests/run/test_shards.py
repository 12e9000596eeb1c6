"""Shards of the probe windows: the same bits however the text is cut, and whatever was finished under another cut."""

import re
import tracemalloc
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import measuring
import numpy as np
import pytest
import torch
from conftest import random_gpt_neox
from hypothesis import given
from hypothesis import strategies as st
from measuring import SETTINGS, Inline, files

from spectrolib.estimator import CovarianceSums
from spectrolib.model import shapes
from spectrolib.model.loading import LanguageModel
from spectrolib.run import cost
from spectrolib.run import result as result_of
from spectrolib.run.measure import fitted, measure
from spectrolib.run.plan import Plan
from spectrolib.run.result import assemble
from spectrolib.run.shards import cut
from spectrolib.run.store import ComponentRecord, RunFolder, TaskFile
from spectrolib.run.tasks import Recorder, _stretches

TEAM = replace(SETTINGS, draws=2, steps_between_draws=1, burn_in=1, batch_size=2, antithetic=True, tilt=5.0)
"""Teams, so that every sum has something in it."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A small model of odd sizes: nothing is a multiple of what a processor does at once."""
    path = tmp_path_factory.mktemp("model")
    random_gpt_neox(vocab_size=measuring.VOCABULARY).save_pretrained(path)
    return path


def plan(folder: Path, **changes) -> Plan:
    """11 probe windows of 11 tokens, two in a pass: five passes and a half."""
    windows = {"probe": measuring.windows(2, 11, length=12), "loss": measuring.windows(1, 2, length=12)}
    some = {"components": ("l0h1", "l0 mlp", "unembed"), "tokens_per_pass": 23}
    return measuring.plan(folder, TEAM, **windows | some | changes)


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory) -> Path:
    """The folder of a run without shards."""
    out = tmp_path_factory.mktemp("whole") / "run"
    measure(plan(folder), out, executor=Inline(), progress=False)
    return out


# How windows are cut


@given(windows=st.integers(1, 60), rows=st.integers(1, 20), shards=st.integers(1, 70))
def test_shards_partition_the_windows_at_the_beginnings_of_passes(windows, rows, shards):
    found = cut(0, windows, windows, rows, shards)
    assert [i for first, end in found for i in range(first, end)] == list(range(windows))
    assert len(found) <= shards
    assert all(first % rows == 0 for first, _ in found)
    assert len(found) == 1 or all(end - first >= rows for first, end in found), "no shard is shorter than a pass"
    passes = max(1, windows // rows)
    assert max(end - first for first, end in found) < rows * (-(-passes // shards) + 1)
    assert len(found) >= min(passes, shards) / 2


@given(data=st.data(), windows=st.integers(1, 40), rows=st.integers(1, 5), before=st.integers(1, 9))
def test_what_is_left_fills_the_gaps(data, windows, rows, before):
    """Of a run with one number of shards, some are finished; the rest is cut by another number."""
    done = [part for part in cut(0, windows, windows, rows, before) if data.draw(st.booleans())]
    after = data.draw(st.integers(1, 9))
    gaps = Gaps(windows, rows, after).left({"task": done})
    assert sorted(i for first, end in [*done, *gaps] for i in range(first, end)) == list(range(windows))
    longest = max(end - first for first, end in cut(0, windows, windows, rows, after))
    assert all(first % rows == 0 and end - first < longest + rows for first, end in gaps)
    assert Gaps(windows, rows, after).left({"task": [None]}) == []


class Gaps:
    """The part of a plan that decides what is left, without a model."""

    left, stretches = Plan.left, Plan.stretches

    def __init__(self, windows: int, rows: int, shards: int):
        self.probe, self.rows, self.shards = range(windows), rows, shards
        self.whole = [type("Whole", (), {"name": "task"})]

    def _part(self, task, stretch):
        return stretch


def test_tasks_are_named_by_their_windows(folder):
    names = [task.name for task in plan(folder, shards=3, components=("l0h0",)).tasks]
    shards = [".windows0-4", ".windows4-8", ".windows8-11"]
    assert sorted(names) == sorted(f"{g}.chain{k}{s}" for g in ("full", "layer0") for k in (0, 1) for s in shards)
    assert plan(folder, shards=3).manifest() == plan(folder).manifest()
    assert plan(folder, shards=99).stretches() == [(0, 2), (2, 4), (4, 6), (6, 8), (8, 11)]
    with pytest.raises(ValueError, match="shards must be at least 1, got 0"):
        plan(folder, shards=0)


# The same bits


@pytest.mark.parametrize("shards", [2, 3, 5])
def test_any_number_of_shards_gives_the_same_bytes(folder, whole, tmp_path, shards):
    measure(plan(folder, shards=shards), tmp_path / "run", executor=Inline(), progress=False)
    assert len(list((tmp_path / "run" / "tasks").iterdir())) == len(plan(folder, shards=shards).tasks) == 6 * shards
    assert files(tmp_path / "run" / "result.zarr") == files(whole / "result.zarr")
    assert files(tmp_path / "run")["manifest.json"] == files(whole)["manifest.json"]


def test_shards_in_processes_give_the_same_bytes(folder, whole, tmp_path):
    found = measure(plan(folder, shards=2), tmp_path / "run", workers=2, progress=False)
    assert files(tmp_path / "run" / "result.zarr") == files(whole / "result.zarr")
    assert found["susceptibility"].shape == (121, 3)


def test_the_sums_of_a_shard_are_a_stretch_of_the_sums(folder, whole, tmp_path):
    """Every array of every task, not only those that reach the result."""
    measure(plan(folder, shards=3), tmp_path / "run", executor=Inline(), progress=False)
    for task in plan(folder, shards=3).tasks:
        part = TaskFile(tmp_path / "run" / "tasks" / f"{task.name}.npz")
        name = re.sub(r"\.windows.*", "", task.name)
        known = TaskFile(whole / "tasks" / f"{name}.npz")
        tokens = slice(task.windows[0] * 11, task.windows[1] * 11)
        assert part.tokens == tokens.stop - tokens.start
        for component in task.components:
            mine, theirs = part.record(component), known.record(component, tokens.start, tokens.stop)
            np.testing.assert_array_equal(mine.rise, theirs.rise)
            np.testing.assert_array_equal(mine.batch_loss, theirs.batch_loss)
            for own, other in zip(mine.sums, theirs.sums, strict=True):
                for key, value in own.to_arrays().items():
                    np.testing.assert_array_equal(value, other.to_arrays()[key], err_msg=f"{task.name} {key}")


@pytest.mark.parametrize("shards", [1, 2, 5])
def test_a_run_goes_on_with_another_number_of_shards(folder, whole, tmp_path, shards):
    """What is finished is kept, under whatever cut."""
    first, kept = Halting(7), tmp_path / "run" / "tasks"
    with pytest.raises(Stopped):
        measure(plan(folder, shards=3), tmp_path / "run", executor=first, progress=False)
    before = {file: file.stat().st_mtime_ns for file in kept.iterdir()}
    assert len(before) == 7
    measure(plan(folder, shards=shards), tmp_path / "run", executor=Inline(), progress=False)
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert files(tmp_path / "run" / "result.zarr") == files(whole / "result.zarr")


class Stopped(Exception):
    pass


class Halting(Inline):
    """Fails after so many tasks."""

    def __init__(self, count: int):
        super().__init__()
        self.count = count

    def submit(self, function, /, *args, **kwargs):
        return super().submit(function if len(self.tasks) < self.count else stop, *args, **kwargs)


def stop(*_) -> None:
    raise Stopped


def test_controls_of_a_stretch_do_not_depend_on_what_lies_beside_it():
    """Their bits would, in one matrix product over all tokens."""
    settings, rng = replace(TEAM, draws=16), np.random.default_rng(0)
    draws = [(rng.standard_normal(4), rng.standard_normal((4, 91))) for _ in range(16)]

    def sums(stretches: list[slice]) -> ComponentRecord:
        recorder = Recorder("l0h0", settings, 0, stretches, blocks=2)
        for index, (rise, excess) in enumerate(draws):
            recorder.take(index, rise, excess[:, stretches[0].start : stretches[-1].stop], np.zeros(4))
        return recorder.finish().sums

    whole, first = sums(_stretches(91, 13)), sums(_stretches(26, 13))
    for own, other in zip(first, whole, strict=True):
        assert own.controlled == 32
        for name in CovarianceSums.VECTORS:
            np.testing.assert_array_equal(getattr(own, name), getattr(other, name)[..., :26])


# Memory


def record(rng: np.random.Generator, tokens: int, blocks: int = 2) -> ComponentRecord:
    """Sums of random numbers."""
    blocks = [CovarianceSums(tokens) for _ in range(blocks)]
    for sums in blocks:
        sums.count, sums.pairs, sums.controlled, sums.mean_phi = 8, 4, 8, rng.standard_normal()
        for name in CovarianceSums.VECTORS:
            setattr(sums, name, rng.standard_normal(getattr(sums, name).shape))
    return ComponentRecord(tuple(blocks), rng.standard_normal(4), rng.standard_normal(4))


def test_putting_a_result_together_takes_as_much_memory_for_many_chains_as_for_few(folder, tmp_path, monkeypatch):
    """Little more than the result, while the partial sums are many times that."""
    monkeypatch.setattr(result_of, "SLAB_BYTES", 2**19)
    monkeypatch.setattr(result_of, "_start_losses", lambda plan: np.zeros(6 * 1500, dtype=np.float32))
    peaks, size, probe = {}, 0, measuring.windows(2, 1500, length=7)
    for chains in (2, 6):
        job = plan(folder, probe=probe, components=(), tokens_per_pass=None, shards=2)
        job = replace(job, settings=replace(job.settings, chains=chains))
        run, rng = RunFolder(tmp_path / f"{chains}", job.manifest()), np.random.default_rng(0)
        for task in job.tasks:
            tokens = 6 * (task.windows[1] - task.windows[0])
            run.save_task(task.name, {name: record(rng, tokens) for name in task.components})
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


def test_a_result_from_many_slabs_is_that_from_one(folder, whole, monkeypatch):
    """121 tokens in 41 slabs."""
    job = plan(folder)
    expected = assemble(job, RunFolder(whole, job.manifest()))
    monkeypatch.setattr(result_of, "SLAB_BYTES", 8 * result_of.SUM_BYTES * 3)
    assert len(result_of._slabs(121, 4)) == 41
    assert assemble(job, RunFolder(whole, job.manifest())).identical(expected)


# A bound on the memory of a worker


def test_a_bound_on_memory_fixes_the_shards(folder, whole, tmp_path):
    job = plan(folder)
    most, least = (sum(cost.need(replace(job, shards=n)).values()) for n in (1, 5))
    assert most > least
    assert cost.within(job, most).shards == 1 and cost.within(job, most).tokens_per_pass == 23
    for limit in np.linspace(least, most, 7):
        assert sum(cost.need(cost.within(job, limit)).values()) <= limit
    assert cost.within(replace(job, shards=4), most).shards == 4
    measure(job, tmp_path / "run", memory=least, executor=Inline(), progress=False)
    assert len(list((tmp_path / "run" / "tasks").iterdir())) == 6 * 5
    assert files(tmp_path / "run" / "result.zarr") == files(whole / "result.zarr")
    with pytest.raises(
        ValueError, match=r"a worker needs at least [\d.]+ MB of memory, more than 1 MB: model .*--plain"
    ):
        measure(job, tmp_path / "other", memory=1e6, executor=Inline(), progress=False)
    assert not (tmp_path / "other").exists()


def test_passes_are_shortened_where_shards_do_not_help_and_then_stay(folder, tmp_path):
    """A long pass needs more than the smallest shard of long passes; the run remembers, since its bits depend on it."""
    job = plan(folder, tokens_per_pass=None)
    assert job.tasks == replace(job, shards=99).tasks, "all windows are in one pass"
    limit = sum(cost.need(plan(folder, shards=99)).values())
    short = fitted(job, tmp_path / "run", limit)
    assert 11 <= short.tokens_per_pass < 121 and sum(cost.need(short).values()) <= limit
    assert short.manifest()["machine"]["tokens_per_pass"] == short.tokens_per_pass
    measure(job, tmp_path / "run", memory=limit, executor=Inline(), progress=False)
    assert fitted(job, tmp_path / "run").tokens_per_pass == short.tokens_per_pass
    assert fitted(job, tmp_path / "run", 1e12).tokens_per_pass == short.tokens_per_pass
    RunFolder(tmp_path / "begun", job.manifest())
    with pytest.raises(ValueError, match="a worker needs at least"):
        fitted(job, tmp_path / "begun", limit)


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


def test_files_are_read_in_stretches(tmp_path):
    run, known = RunFolder(tmp_path / "run", {}), record(np.random.default_rng(1), 10)
    run.save_task("full.chain0", {"full": known})
    file = TaskFile(run.task_file("full.chain0"))
    for first, end in ((0, 10), (3, 7), (9, 10), (4, 4)):
        for mine, theirs in zip(file.record("full", first, end).sums, known.sums, strict=True):
            for name in CovarianceSums.VECTORS:
                np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name)[..., first:end])
    data = bytearray(run.task_file("full.chain0").read_bytes())
    data[len(data) // 2] ^= 1
    run.task_file("full.chain0").write_bytes(data)
    with pytest.raises(ValueError, match=r"full.chain0.npz is damaged \(.*\): delete it"):
        TaskFile(run.task_file("full.chain0"))


def test_on_a_graphics_card_its_memory_is_the_bound(folder, tmp_path, monkeypatch):
    """No card is needed: only its size is asked for."""
    job = plan(folder, probe=measuring.windows(2, 9000, length=12), tokens_per_pass=None)
    job = replace(job, model=LanguageModel(name="small", path=folder, device="cuda"))
    short = sum(cost.need(replace(job, tokens_per_pass=16_384)).values())
    long = sum(cost.need(job).values())
    assert job.rows == 65_536 // 11 and short < long

    def of_size(memory: float) -> Plan:
        properties = SimpleNamespace(total_memory=memory / 0.9)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
        return fitted(job, tmp_path / "run")

    assert of_size(1.01 * long) == job
    assert of_size(1.01 * short).tokens_per_pass == 16_384
    assert fitted(job, tmp_path / "run", 1.01 * long) == job, "a bound that is given comes first"
    with pytest.raises(ValueError, match="a worker needs at least"):
        of_size(1e3)


def test_each_shard_repeats_the_chains_and_not_the_losses(folder):
    one, many = cost.of(plan(folder)), cost.of(plan(folder, shards=3))
    assert many.tasks == 3 * one.tasks and many.steps == 3 * one.steps and many.token_steps == 3 * one.token_steps
    assert one.token_evaluations < many.token_evaluations < 3 * one.token_evaluations
    assert one.operations < many.operations < 3 * one.operations
