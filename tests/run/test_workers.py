"""Where tasks run: the same bytes anywhere, and one clear error for all that can die."""

import multiprocessing
import os
import signal
import threading
import time
import warnings
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace

import psutil
import pytest
from measuring import SETTINGS, Inline, files, plan, wait_for

from spectrolib.posterior import ChainError
from spectrolib.run.measure import WorkerDied, measure
from spectrolib.run.store import RunFolder
from spectrolib.run.workers import available_cores, end_processes


@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_workers_gives_the_same_bytes(folder, whole, tmp_path, workers):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measure(plan(folder), tmp_path / "run", workers=workers, progress=False)
    assert files(tmp_path / "run") == files(whole)


def test_a_dask_cluster_gives_the_same_bytes(folder, whole, tmp_path):
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        measure(plan(folder), tmp_path / "run", executor=client, progress=False)
    assert files(tmp_path / "run") == files(whole)


def _busy(begun, stopped) -> None:
    """A worker in a pass that takes longer than anybody waits: it ignores Ctrl-C, and looks up too late."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    begun.release()
    stopped.wait(60)


def test_workers_that_do_not_stop_by_themselves_are_ended():
    context = multiprocessing.get_context("spawn")
    begun, told, never = context.Semaphore(0), context.Event(), context.Event()
    obeys, busy = (context.Process(target=_busy, args=(begun, event)) for event in (told, never))
    for process in (obeys, busy):
        process.start()
    assert begun.acquire(timeout=60) and begun.acquire(timeout=60)
    told.set()
    begin = time.monotonic()
    end_processes([obeys, busy], grace=3.0)
    busy.join(5)
    assert time.monotonic() - begin < 8
    assert (obeys.exitcode, busy.exitcode) == (0, -signal.SIGTERM)


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


def test_an_error_in_a_worker_process_arrives_as_itself(folder, tmp_path):
    job = plan(folder, replace(SETTINGS, max_rise=1e-6), components=("l0h0",))
    with pytest.raises(ChainError, match="The chain is no longer local"):
        measure(job, tmp_path / "run", workers=1, progress=False)


def test_available_cores_is_at_least_one():
    assert 1 <= available_cores() <= os.cpu_count()


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
