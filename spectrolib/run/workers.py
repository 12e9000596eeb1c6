"""One task, and the processes that carry tasks out."""

from __future__ import annotations

import ctypes
import functools
import gc
import logging
import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..model.engine import one_thread
from .firstorder import run_gradients
from .plan import Task
from .progress import Advance
from .store import ComponentRecord, GradientRecord, write_task
from .tasks import Job, Report, engine_at, run_task

GRACE = 2.0
"""Seconds that workers have to stop by themselves."""


def work(job: Job, task: Task, report: Report = lambda done: None) -> dict[str, ComponentRecord] | GradientRecord:
    """Run a task in a worker; returns what it measured."""
    with one_thread():
        report(0)  # a worker that was told to stop begins no other task
        engine = engine_at(job.folder, job.device, job.tokens_per_pass)
        return (run_gradients if job.direction else run_task)(engine, job, task, report)


@dataclass(frozen=True)
class _Worker:
    """What a local worker process holds: the job, the folder of results, and what it shares with its parent."""

    job: Job
    folder: Path
    stop: ctypes.c_byte
    """Not zero once the parent wants workers to end; see `end_processes`."""
    done: ctypes.Array
    """Draws that each task has finished."""
    slots: dict[Task, int]
    """Where each task counts them."""

    def run(self, task: Task) -> None:
        """Carry out a task, and write its file here.

        Nothing large goes through the pool's pipes. A worker that is killed while it writes to one leaves half a
        message that its parent waits for, and a lock that the other workers wait for: for ever.
        """
        write_task(self.folder / f"{task.name}.npz", work(self.job, task, functools.partial(self.report, task)))
        give_back()

    def report(self, task: Task, draws: int) -> None:
        """Count draws where the parent looks, and stop if it says so."""
        if self.stop.value:
            raise KeyboardInterrupt
        self.done[self.slots[task]] += draws


_worker: _Worker | None = None
"""That of this process."""


def _work_here(task: Task) -> None:
    _worker.run(task)


def give_back() -> None:
    """Return freed memory to the system: the C library would keep it, in pieces too small for what comes next."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError, TypeError):  # another C library
        return


def _start_worker(job: Job, folder: Path, stop, done, slots: dict[Task, int]) -> None:
    """A local worker counts its draws where its parent looks, stops when told to, and dies with its parent."""
    global _worker
    _worker = _Worker(job, folder, stop, done, slots)
    gc.freeze()  # so that no collection touches, and so copies, the memory that workers share
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent decides
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


# Where tasks run -----------------------------------------------------------------------------------------------------


def check_executor(executor, workers: int | None) -> None:
    """Refuse (ValueError) an executor, or a number of workers, that `open_executor` cannot use."""
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    address = isinstance(executor, str) and executor != "local"
    if address and "://" not in executor:
        raise ValueError(
            f"unknown executor {executor!r}: it must be 'local', an Executor, or a Dask client or address (tcp://host:port)"
        )
    if address or not isinstance(executor, str | Executor):
        try:
            from distributed import Client
        except ImportError:
            raise ValueError("Dask is not installed: pip install 'spectrolib[distributed]'") from None
        if not address and not isinstance(executor, Client):
            raise ValueError(f"executor must be 'local', an Executor, or a Dask client or address, got {executor!r}")


@contextmanager
def open_executor(
    executor, workers: int | None, job: Job, folder: Path, tasks: list[Task], advance: Advance
) -> Iterator[Callable[[Task], Future]]:
    """Yield a function that submits a task. Its result is what it measured; None if that is in ``folder`` already."""
    if isinstance(executor, Executor):
        yield functools.partial(executor.submit, work, job)
    elif executor == "local":
        count = workers or (1 if job.device.startswith("cuda") else available_cores())
        with _local(min(count, len(tasks)), job, folder, tasks, advance) as pool:
            yield functools.partial(pool.submit, _work_here)
    else:
        from distributed import Client

        client = executor if isinstance(executor, Client) else _connect(executor)
        try:
            yield functools.partial(client.get_executor(pure=False).submit, work, _scattered(client, job))
        finally:
            if client is not executor:
                client.close()


def _scattered(client, job: Job):
    """The job where the workers of a cluster are."""
    try:
        return client.scatter(job, broadcast=True, hash=False)
    except TimeoutError as error:
        raise ValueError("the Dask cluster has no workers: start some, and measure again") from error


def _connect(address: str):
    from distributed import Client

    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # a lost scheduler: we say it in one line
    try:
        return Client(address)
    except OSError as error:
        raise ValueError(f"no Dask scheduler answers at {address!r}: start one, or mend the address") from error


def available_cores() -> int:
    """Cores that this process may use: an affinity mask or a container's quota can leave fewer than the machine has."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return min(cores, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):  # no such file, or the quota "max"
        return cores


def start_forkserver() -> multiprocessing.context.BaseContext:
    """Start the process that workers are forked from: it imports what they share while the caller does something else.

    It and its workers never see Ctrl-C. Where the system cannot fork, workers are started one by one, when needed.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    from multiprocessing import forkserver, resource_tracker

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["spectrolib.run.workers"])
    resource_tracker.ensure_running()  # first, since it unblocks what is blocked
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # the new process inherits this
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


@contextmanager
def _local(count: int, job: Job, folder: Path, tasks: list[Task], advance: Advance) -> Iterator[Executor]:
    """Processes of this machine. They share two pieces of memory with this one, so a dead worker can hold no lock."""
    context = start_forkserver()
    stop, done = context.RawValue("b", 0), context.RawArray("q", len(tasks))
    slots = {task: i for i, task in enumerate(tasks)}
    give_back()
    given, others = (job, folder, stop, done, slots), set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=_start_worker, initargs=given)
    try:
        with advance.watching(done):
            yield pool
    except BaseException:
        stop.value = 1
        pool.shutdown(wait=False, cancel_futures=True)
        end_processes(set(multiprocessing.active_children()) - others)
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def end_processes(processes: Iterable[multiprocessing.process.BaseProcess], grace: float = GRACE) -> None:
    """Wait for processes that were told to stop, so many seconds together, and end those that have not.

    A pass of a large model can take a minute, and a worker looks up only after it. What it had finished is on disk.
    """
    deadline = time.monotonic() + grace
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            process.terminate()
