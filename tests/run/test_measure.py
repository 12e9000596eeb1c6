"""The main job: the right numbers, the same bits however it is run, and what happens when it is interrupted."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

import measuring
import numpy as np
import psutil
import pytest
import torch
from conftest import random_gpt_neox
from measuring import SETTINGS, Inline, files, plan
from reference import put

from spectrolib.estimator import with_estimator
from spectrolib.model.components import blocks
from spectrolib.model.loading import LanguageModel, engine_of
from spectrolib.model.operations import evaluation_operations, step_operations
from spectrolib.model.shapes import Shape
from spectrolib.posterior import ChainError, sample
from spectrolib.run import cost
from spectrolib.run.measure import WorkerDied, measure
from spectrolib.run.plan import Task
from spectrolib.run.store import RunFolder
from spectrolib.run.workers import available_cores
from spectrolib.text.corpus import Windows


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model")
    shape = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": measuring.VOCABULARY}
    random_gpt_neox(**shape).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory) -> Path:
    """The folder of an uninterrupted run, all tasks in this process."""
    out = tmp_path_factory.mktemp("whole") / "run"
    measure(plan(folder), out, executor=Inline(), progress=False)
    return out


# Numbers


@pytest.mark.parametrize(("measured", "other"), [("two_chain", "one_chain"), ("one_chain", "two_chain")])
def test_either_estimator_is_had_from_the_terms_of_a_result(folder, tmp_path, measured, other):
    few = replace(SETTINGS, draws=3, tilt=5.0)
    results = {
        name: measure(plan(folder, few, estimator=name), tmp_path / name, executor=Inline(), progress=False)
        for name in (measured, other)
    }
    found = with_estimator(results[measured], other)
    np.testing.assert_allclose(found.susceptibility, results[other].susceptibility, rtol=1e-12, atol=1e-15)
    assert found.attrs["estimator"] == other and "standard_error" not in found
    assert with_estimator(results[measured], measured) is results[measured]
    with pytest.raises(ValueError, match="unknown estimator 'three'"):
        with_estimator(results[measured], "three")


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


def test_the_control_at_nbeta_0_needs_no_minibatch(folder, tmp_path):
    job = plan(folder, replace(SETTINGS, nbeta=0.0, draws=2), components=("l1h1",))
    result = measure(job, tmp_path / "run", executor=Inline(), progress=False)
    assert np.isnan(result["batch_loss"]).all()
    assert np.isfinite(result["susceptibility"]).all()
    assert cost.of(job).token_steps == 0


# The same bits


@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_workers_gives_the_same_bytes(folder, whole, tmp_path, workers):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measure(plan(folder), tmp_path / "run", workers=workers, progress=False)
    assert files(tmp_path / "run") == files(whole)


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


def test_a_dask_cluster_gives_the_same_bytes(folder, whole, tmp_path):
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        measure(plan(folder), tmp_path / "run", executor=client, progress=False)
    assert files(tmp_path / "run") == files(whole)


# Interruption


def wait_for(condition, what: str, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.005)


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


def test_a_dead_worker_is_reported_and_the_rest_is_kept(folder, whole, tmp_path):
    out = tmp_path / "run"
    slow = plan(folder, replace(SETTINGS, draws=40))
    killed = []

    def kill_a_worker() -> None:
        wait_for(lambda: any((out / "tasks").glob("*.chain?.npz")), "the first task")
        (forkserver,) = [
            process for process in psutil.Process().children() if "forkserver" in " ".join(process.cmdline())
        ]
        killed.append(forkserver.children()[0])
        killed[0].kill()

    thread = threading.Thread(target=kill_a_worker)
    thread.start()
    with pytest.raises(WorkerDied, match="a worker process died"):
        measure(slow, out, workers=2, progress=False)
    thread.join()
    assert killed
    assert any((out / "tasks").glob("*.npz"))
    assert not (out / "result.zarr").exists()


def test_a_broken_pool_is_one_clear_error(folder, tmp_path):
    class Broken(Inline):
        def submit(self, function, /, *args, **kwargs):
            future: Future = Future()
            future.set_exception(BrokenProcessPool("gone"))
            return future

    with pytest.raises(WorkerDied, match="Finished tasks are kept"):
        measure(plan(folder), tmp_path / "run", executor=Broken(), progress=False)


@pytest.mark.parametrize("gone", ["worker", "scheduler"])
def test_a_cluster_that_is_gone_is_one_clear_error(folder, tmp_path, gone):
    """Dask's own errors, as a client's futures give them."""
    distributed = pytest.importorskip("distributed")

    class Gone(Inline):
        def submit(self, function, /, *args, **kwargs):
            future = super().submit(function, *args, **kwargs)
            if len(self.tasks) < 3:
                return future
            future = Future()
            if gone == "scheduler":
                future.cancel()
                future.set_running_or_notify_cancel()
            else:
                future.set_exception(distributed.KilledWorker("a task", None, 3))
            return future

    words = {"worker": "workers of the Dask cluster died", "scheduler": "the Dask scheduler, .*, is lost"}
    with pytest.raises(WorkerDied, match=words[gone] + r".*Finished tasks are kept"):
        measure(plan(folder), tmp_path / "run", executor=Gone(), progress=False)
    assert len(list((tmp_path / "run" / "tasks").iterdir())) == 2


def test_local_workers_write_their_tasks_themselves(folder, whole, tmp_path, monkeypatch):
    """Large results in a pipe are a deadlock once a worker dies in the middle of one."""

    def forbidden(*_):
        raise AssertionError("a result came through the pipe")

    monkeypatch.setattr(RunFolder, "save_task", forbidden)
    measure(plan(folder), tmp_path / "run", workers=2, progress=False)
    assert files(tmp_path / "run") == files(whole)


def test_a_finished_run_is_not_touched(folder, whole):
    class Refuses(Inline):
        def submit(self, *args, **kwargs):
            raise AssertionError("a finished task was run again")

    before = {file: file.stat().st_mtime_ns for file in whole.rglob("*") if file.is_file()}
    result = measure(plan(folder), whole, executor=Refuses(), progress=False)
    assert np.isfinite(result["susceptibility"]).all()
    assert {file: file.stat().st_mtime_ns for file in whole.rglob("*") if file.is_file()} == before


def test_a_chain_that_leaves_stops_the_run_and_keeps_what_is_done(folder, tmp_path):
    """The whole model rises by far more than any single component."""
    wide = replace(SETTINGS, nbeta=0.0, gamma=10.0, step_size=0.03, max_rise=0.5)
    job = plan(folder, wide, components=("l0h0", "l1h0"))
    with pytest.raises(ChainError, match=r"component full, chain [01], draw 0: the loss rose by .*step_size"):
        measure(job, tmp_path / "run", executor=Inline(), progress=False)
    kept = {file.name for file in (tmp_path / "run" / "tasks").iterdir()}
    assert kept == {f"layer{layer}.chain{chain}.npz" for layer in (0, 1) for chain in (0, 1)}


def test_an_error_in_a_worker_process_arrives_as_itself(folder, tmp_path):
    job = plan(folder, replace(SETTINGS, max_rise=1e-6), components=("l0h0",))
    with pytest.raises(ChainError, match="The chain is no longer local"):
        measure(job, tmp_path / "run", workers=1, progress=False)


# The plan


def test_the_longest_tasks_come_first(folder):
    tasks = plan(folder).tasks
    assert [task.components[0] for task in tasks[::2]] == ["l0h0", "full", "embed", "l1h0", "unembed"]
    assert len({task.name for task in tasks}) == len(tasks) == 10
    assert sorted(name for task in tasks if task.chain == 0 for name in task.components) == sorted(
        [*plan(folder).components, "full"]
    )
    assert Task(("l0h0", "l0 mlp"), 3).name == "layer0.chain3"


def test_operations_agree_with_a_count_of_the_products():
    from torch.utils.flop_counter import FlopCounterMode

    model = random_gpt_neox(hidden_size=32, num_attention_heads=4, intermediate_size=128, vocab_size=200)
    shape, tokens = Shape.from_config(model.config.to_dict()), 4 * 16
    ids = torch.randint(0, 200, (4, 16))
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        model(ids)
    assert evaluation_operations("embed", shape, 16) * tokens == pytest.approx(forward.get_total_flops(), rel=0.1)
    with FlopCounterMode(display=False) as step:
        model.requires_grad_(True)(ids).logits.sum().backward()
    assert step_operations("full", shape, 16) * tokens == pytest.approx(step.get_total_flops(), rel=0.1)
    hidden, weight = torch.ones(tokens, 32), torch.ones(200, 32, requires_grad=True)
    with FlopCounterMode(display=False) as step:
        (hidden @ weight.T).sum().backward()
    assert step_operations("unembed", shape, 16) * tokens == step.get_total_flops()


def test_cost_counts_draws_and_steps(folder):
    found = cost.of(plan(folder))
    assert found.tasks == 10
    assert found.steps == 9 * 2 * (2 + 8 * 3)
    assert found.token_steps == found.steps * 4 * 8
    assert found.token_evaluations == 9 * 2 * 8 * (6 + 4) * 8
    assert found.seconds(2) == pytest.approx(found.seconds(1) / 2)


def test_available_cores_is_at_least_one():
    assert 1 <= available_cores() <= os.cpu_count()


# Bad input, before any work


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"components": ("l9h9",)}, "unknown component 'l9h9': the model has heads l0h0 to l1h1"),
        ({"components": ("l0h0", "l0h0")}, "named once each"),
        ({"components": ("full",)}, "without 'full'"),
        ({"estimator": "three_chain"}, "unknown estimator 'three_chain'"),
        ({"blocks": 9}, "blocks must lie between 1 and the 8 draws, got 9"),
        ({"probe": Windows(np.array([[1, 64]]), ["a"], ["b"])}, "probe windows hold token id 64, beyond the model's"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(folder, changes, message):
    with pytest.raises(ValueError, match=message):
        plan(folder, **changes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"workers": 0}, "workers must be at least 1, got 0"),
        ({"executor": "clowd"}, "unknown executor 'clowd'"),
        ({"executor": 3}, "executor must be 'local', an Executor, or a Dask client or address, got 3"),
    ],
)
def test_an_executor_that_makes_no_sense_is_refused(folder, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        measure(plan(folder), tmp_path / "run", **arguments)
    assert not (tmp_path / "run").exists()


def test_another_plan_is_refused_and_the_difference_named(folder, whole):
    with pytest.raises(ValueError, match=r"belongs to another plan \(settings.gamma: there 100.0, here 50.0\)"):
        measure(plan(folder, replace(SETTINGS, gamma=50.0)), whole)
    with pytest.raises(ValueError, match=r'components: there \["l0h0", .*\.\.\., here \["l0h0"\]'):
        measure(plan(folder, components=("l0h0",)), whole)
    with pytest.raises(ValueError, match=r"windows.probe.hash: there .*, here .*"):
        measure(plan(folder, probe=measuring.windows(7, 6)), whole)


def test_windows_of_another_tokenizer_are_refused(folder):
    from tokenizers import Tokenizer, models

    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    model = LanguageModel(measuring.language_model(folder).model, tokenizer, "small")
    foreign = replace(measuring.windows(0, 4), provenance={"tokenizer": "another"})
    with pytest.raises(ValueError, match="loss windows were made with another tokenizer than that of model 'small'"):
        replace(plan(folder), model=model, loss=foreign)


def test_numpy_numbers_make_a_plan_too(folder):
    settings = replace(SETTINGS, draws=np.int64(8), seed=np.int32(0))
    assert json.dumps(plan(folder, settings).manifest()) == json.dumps(plan(folder).manifest())
