"""The main job: the same bits, what happens when it is interrupted, what it fits into."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import measuring
import numpy as np
import psutil
import pytest
import torch
from conftest import random_gpt_neox
from measuring import SETTINGS, TEAM, Inline, files, odd_plan, plan, wait_for, windows

from spectrolib.model.loading import LanguageModel
from spectrolib.run import cost
from spectrolib.run.measure import fitted, measure
from spectrolib.run.plan import Plan
from spectrolib.run.store import RunFolder


def test_the_seed_decides(folder, whole, tmp_path):
    same = measure(plan(folder), tmp_path / "same", executor=Inline(), progress=False)
    assert files(tmp_path / "same") == files(whole)
    other = measure(plan(folder, replace(SETTINGS, seed=1)), tmp_path / "other", executor=Inline(), progress=False)
    assert not np.isclose(other["susceptibility"], same["susceptibility"]).any(axis=0).all()


def test_a_model_in_memory_gives_the_same_numbers_as_its_folder(folder, whole, tmp_path):
    shape = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": measuring.VOCABULARY}
    model = LanguageModel(random_gpt_neox(**shape), None, "small")
    assert model.path is None
    job = replace(plan(folder, components=("l1h0",)), model=model)
    result = measure(job, tmp_path / "run", workers=1, progress=False)
    expected = measure(plan(folder), whole, progress=False)["susceptibility"].sel(component=["l1h0"])
    np.testing.assert_array_equal(result["susceptibility"], expected)


@pytest.mark.parametrize("whom", ["parent", "everyone"])
def test_a_killed_run_goes_on_where_it_stopped(folder, whole, tmp_path, whom):
    out, tasks = tmp_path / "run", tmp_path / "run" / "tasks"
    command = [sys.executable, measuring.__file__, str(folder), str(out), "2"]
    process = subprocess.Popen(command, start_new_session=True)
    wait_for(lambda: any(tasks.glob("*.chain?.npz")) or process.poll() is not None, "the first task")
    time.sleep(np.random.default_rng().uniform(0, 0.05))
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    assert len(family) >= 3, "a parent, the process that forks, and workers"
    if whom == "parent":
        process.kill()
    else:
        os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not alive, "workers must die with their parent"

    finished = {file: file.stat().st_mtime_ns for file in tasks.glob("*.chain?.npz")}
    assert 1 <= len(finished) < 10
    assert not (out / "result.zarr").exists()
    rest = Inline()
    measure(plan(folder), out, executor=rest, progress=False)
    assert len(rest.tasks) == 10 - len(finished)
    assert {file: file.stat().st_mtime_ns for file in finished} == finished
    assert files(out / "result.zarr") == files(whole / "result.zarr")


def test_a_finished_run_is_not_touched(folder, whole):
    class Refuses(Inline):
        def submit(self, *args, **kwargs):
            raise AssertionError("a finished task was run again")

    before = {file: file.stat().st_mtime_ns for file in whole.rglob("*") if file.is_file()}
    result = measure(plan(folder), whole, executor=Refuses(), progress=False)
    assert np.isfinite(result["susceptibility"]).all()
    assert {file: file.stat().st_mtime_ns for file in whole.rglob("*") if file.is_file()} == before


def test_another_plan_is_refused_and_the_difference_named(folder, whole):
    with pytest.raises(ValueError, match=r"belongs to another plan \(settings.gamma: there 100.0, here 50.0\)"):
        measure(plan(folder, replace(SETTINGS, gamma=50.0)), whole)
    with pytest.raises(ValueError, match=r'components: there \["l0h0", .*\.\.\., here \["l0h0"\]'):
        measure(plan(folder, components=("l0h0",)), whole)
    with pytest.raises(ValueError, match=r"windows.probe.hash: there .*, here .*"):
        measure(plan(folder, probe=measuring.windows(7, 6)), whole)


def test_passes_are_shortened_where_shards_do_not_help_and_then_stay(odd_folder, tmp_path):
    """A long pass needs more than the smallest shard of long passes; the run remembers, since its bits depend on it."""
    job = odd_plan(odd_folder, tokens_per_pass=None)
    assert job.tasks == replace(job, shards=99).tasks, "all windows are in one pass"
    limit = sum(cost.need(odd_plan(odd_folder, shards=99)).values())
    short = fitted(job, tmp_path / "run", limit)
    assert 11 <= short.tokens_per_pass < 121 and sum(cost.need(short).values()) <= limit
    assert short.manifest()["machine"]["tokens_per_pass"] == short.tokens_per_pass
    measure(job, tmp_path / "run", memory=limit, executor=Inline(), progress=False)
    assert fitted(job, tmp_path / "run").tokens_per_pass == short.tokens_per_pass
    assert fitted(job, tmp_path / "run", 1e12).tokens_per_pass == short.tokens_per_pass
    RunFolder(tmp_path / "begun", job.manifest())
    with pytest.raises(ValueError, match="a worker needs at least"):
        fitted(job, tmp_path / "begun", limit)


def test_on_a_graphics_card_its_memory_is_the_bound(odd_folder, tmp_path, monkeypatch):
    """No card is needed: only its size is asked for."""
    job = odd_plan(odd_folder, probe=measuring.windows(2, 9000, length=12), tokens_per_pass=None)
    job = replace(job, model=LanguageModel(name="small", path=odd_folder, device="cuda"))
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


@contextmanager
def disk_of(size: int) -> Iterator[None]:
    """Where the system lets no file grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_costs_nothing_that_was_finished(folder, tmp_path):
    """A task's file, and then the result, can't be written: one error that names it, nothing half, and it goes on."""
    small, run = plan(folder, replace(TEAM, chains=1), components=("l0h1",)), tmp_path / "run"
    larger = replace(small, probe=windows(2, 60))
    with disk_of(12_000), pytest.raises(OSError, match=r"tasks/\S+\.npz"):
        measure(larger, run, executor=Inline(), progress=False)
    assert not [file for file in run.rglob("*") if ".part" in file.name]
    whole = measure(larger, run, executor=Inline(), progress=False)
    kept = files(run / "tasks")
    shutil.rmtree(run / "result.zarr")
    with disk_of(900), pytest.raises(OSError, match=r"result\.zarr"):
        measure(larger, run, executor=Inline(), progress=False)
    assert files(run / "tasks") == kept and not [file for file in run.rglob("*") if ".part" in file.name]
    assert measure(larger, run, executor=Inline(), progress=False).identical(whole)
