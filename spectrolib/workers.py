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
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy import ndarray

from .bank import Bank
from .engine import Engine, one_thread
from .estimator import CONTROL_DRAWS, CovarianceSums
from .models import load_weights
from .plan import Plan, Task
from .posterior import Chain, Draw, Settings, lockstep, stable_seed, team
from .shapes import Shape
from .store import ComponentRecord, joined, write_task


@dataclass(frozen=True)
class Job:
    """A plan as it travels to a worker: the model by its folder, the windows as arrays."""

    folder: str
    device: str
    sampling: ndarray
    loss: ndarray
    probe: ndarray
    settings: Settings
    blocks: int
    tokens_per_pass: int | None = None
    bank: str | None = None
    """Folder where draws are kept (`spectrolib.bank`)."""


Report = Callable[[int], None]
"""Called with the number of draws (of single components) that a task has finished since the last call."""


def run_task(engine: Engine, job: Job, task: Task, report: Report = lambda draws: None) -> dict[str, ComponentRecord]:
    """Sample the chains of a task in lockstep, or take their draws from the bank, and sum up every draw on its shard of
    the probe windows.

    At each draw, g = L(w) - L(w*) is taken on the loss windows, and the excess loss d_xy = l_xy - L on the probe
    windows, relative to its value at w*: a constant that no estimator sees, and that would cost digits.

    Raises:
        ChainError: if a loss is not finite, or a chain is no longer local.
    """
    settings = job.settings
    size = len(settings.members)
    group = engine.group([name for name in task.components for _ in range(size)])
    teams = [
        team(start, settings, name=name, chain=task.chain)
        for name, start in zip(task.components, group.start[::size], strict=True)
    ]
    chains = [chain for members in teams for chain in members]
    windows = job.probe if task.windows is None else job.probe[slice(*task.windows)]
    loss, probe = group.cache(job.loss), group.cache(windows)
    loss_start = engine.losses(job.loss).double().mean()
    probe_start = engine.losses(windows).double()
    time = probe_start.shape[1]
    stretches = _stretches(probe_start.numel(), time * max(1, engine.tokens_per_pass // time))
    records = [Recorder(name, settings, task.chain, stretches, job.blocks) for name in task.components]
    for draw in _draws(engine, job, task, chains):
        rise = group.losses(draw.positions, loss).double().mean(dim=(1, 2)) - loss_start
        excess = group.losses(draw.positions, probe).double() - probe_start - rise[:, None, None]
        for chain, own in zip(chains, rise.tolist(), strict=True):
            chain.check(own, draw.index)
        for i, record in enumerate(records):
            mine = slice(i * size, (i + 1) * size)
            record.take(draw.index, rise[mine].cpu().numpy(), excess[mine].flatten(1).cpu().numpy(), draw.losses[mine])
        report(len(teams))
    return {record.name: record.finish() for record in records}


def _draws(engine: Engine, job: Job, task: Task, chains: list[Chain]) -> Iterator[Draw]:
    """The draws of a task's chains: those of the bank if it has them, else sampled, and kept there."""
    bank = None if job.bank is None else Bank(job.bank)
    kept = None if bank is None else bank.draws(task.components, task.chain, job.settings, engine.device)
    if kept is not None:
        return kept
    driven = engine.group([chain.name for chain in chains if chain.driven] or task.components)
    gradients = driven.minibatch_gradients(job.sampling, job.settings, task.chain)
    sampled = lockstep(chains, gradients, job.settings)
    return sampled if bank is None else bank.keep(sampled, chains, job.settings)


def _stretches(tokens: int, most: int) -> list[slice]:
    """The tokens of one pass of the engine after the other: the same ones together, wherever the probe text is cut."""
    return [slice(first, min(first + most, tokens)) for first in range(0, tokens, most)]


class Recorder:
    """Sums up the draws of one team, block by block, and each stretch of tokens for itself.

    A matrix product of other tokens, or of more, has other last bits (`CovarianceSums.control`).
    """

    def __init__(self, name: str, settings: Settings, chain: int, stretches: list[slice], blocks: int):
        self.name, self.settings, self.chain, self.stretches = name, settings, chain, stretches
        self.sums = [[CovarianceSums(part.stop - part.start) for part in stretches] for _ in range(blocks)]
        self.rise, self.batch_loss = np.empty((2, settings.draws))
        self.held: list[tuple[ndarray, ndarray]] = []
        self.block = 0

    def take(self, index: int, rise: ndarray, excess: ndarray, batch_loss: Sequence[float]) -> None:
        """One draw: (members,) loss rises, (members, tokens) excess losses, (members,) minibatch losses."""
        if index * len(self.sums) // self.settings.draws > self.block:
            self._settle()
        self.rise[index] = rise.mean()
        known = [value for value in batch_loss if not math.isnan(value)]
        self.batch_loss[index] = np.mean(known) if known else math.nan
        for part, sums in self._now():
            for own, losses in zip(rise, excess[:, part], strict=True):
                sums.update(own, losses)
            if self.settings.tilt:
                for above, below in zip(excess[::2, part], excess[1::2, part], strict=True):  # as Settings.members
                    sums.respond(above, below, self.settings.tilt)
        self.held.append((rise, excess.astype(np.float32)))
        if len(self.held) * len(rise) >= CONTROL_DRAWS:
            self._control()

    def _now(self) -> Iterator[tuple[slice, CovarianceSums]]:
        """Stretches and their sums of this block."""
        return zip(self.stretches, self.sums[self.block], strict=True)

    def _control(self) -> None:
        """Permute over the draws of all members, which are the draws of the sample covariance."""
        if self.held:
            rises, losses = (np.concatenate(part) for part in zip(*self.held, strict=True))
            count = self.sums[self.block][0].count
            seed = stable_seed("controls", self.settings.seed, self.name, self.chain, self.block, count)
            for part, sums in self._now():
                sums.control(rises, losses[:, part], seed)
            self.held = []

    def _settle(self) -> None:
        self._control()
        self.block += 1

    def finish(self) -> ComponentRecord:
        self._control()
        blocks = [joined(self.sums.pop(0)) for _ in range(len(self.sums))]  # each let go as its copy is made
        return ComponentRecord(tuple(blocks), self.rise, self.batch_loss)


@functools.lru_cache(maxsize=1)
def _engine(folder: str, device: str, tokens_per_pass: int | None) -> Engine:
    config, weights = load_weights(folder)
    weights = {name: tensor.to(device) for name, tensor in weights.items()}
    return Engine(Shape.from_config(config), weights, tokens_per_pass=tokens_per_pass)


_report: Callable[[Task, int], None] = lambda task, draws: None  # noqa: E731


def work(job: Job, task: Task) -> dict[str, ComponentRecord]:
    """A task as a worker runs it: what it measured."""
    with one_thread():
        _report(task, 0)  # a worker that was told to stop begins no other task
        engine = _engine(job.folder, job.device, job.tokens_per_pass)
        return run_task(engine, job, task, functools.partial(_report, task))


_own: tuple[Job, Path] | None = None


def _work_here(task: Task) -> None:
    """A task as a local worker runs it: it writes the file itself.

    Nothing large goes through the pool's pipes. A worker that is killed while it writes to one leaves half a message
    that its parent waits for, and a lock that the other workers wait for: for ever.
    """
    job, folder = _own
    write_task(folder / f"{task.name}.npz", work(job, task))
    give_back()


def give_back() -> None:
    """Return freed memory to the system: the C library keeps it, in pieces that what comes next may not fit into."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError, TypeError):  # another C library
        return


def _start_worker(job: Job, folder: Path, stop, done, slots: dict[Task, int]) -> None:
    """A local worker counts its draws where its parent looks, stops when told to, and dies with its parent."""

    def report(task: Task, draws: int) -> None:
        if stop.value:
            raise KeyboardInterrupt
        done[slots[task]] += draws

    global _report, _own
    _report, _own = report, (job, folder)
    gc.freeze()  # so that no collection touches, and so copies, the memory that workers share
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent decides
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


# Where tasks run -----------------------------------------------------------------------------------------------------


def check_executor(executor, workers: int | None) -> None:
    """Raise a ValueError unless `open_executor` can make something of them."""
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
    """Where tasks run: what submits one. Its result is what it measured, or None where it is in ``folder`` already."""
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
    context.set_forkserver_preload(["spectrolib.workers"])
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
    given = (job, folder, stop, done, slots)
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=_start_worker, initargs=given)
    try:
        with advance.watching(done):
            yield pool
    finally:
        stop.value = 1
        pool.shutdown(wait=True, cancel_futures=True)


class Advance:
    """Progress over the draws of single components: a bar in a terminal, else a line for each finished task."""

    def __init__(self, bar, total: int, draws: int, visible: bool):
        self.bar, self.total, self.per_component = bar, total, draws
        self.visible, self.live, self.done, self.begin = visible, False, 0, time.monotonic()

    @contextmanager
    def watching(self, done) -> Iterator[None]:
        """Show the sum of the workers' counts, twice a second."""
        finished, self.live = threading.Event(), True

        def look() -> None:
            while not finished.wait(0.5):
                self.bar.update(self.bar.task_ids[0], completed=sum(done))

        watcher = threading.Thread(target=look, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            finished.set()
            watcher.join()

    def finished(self, task: Task) -> None:
        self.done += 1
        (row,) = self.bar.tasks
        self.bar.update(row.id, description=f"task {self.done} of {self.total}")
        if not self.live:
            self.bar.advance(row.id, len(task.components) * self.per_component)
        if self.visible and not self.bar.console.is_terminal:
            part, spent = row.completed / row.total, time.monotonic() - self.begin
            left = f", about {spent * (1 / part - 1):.0f} s left" if part > 0 else ""
            print(f"task {self.done} of {self.total}: {task.name}, {spent:.0f} s{left}", file=sys.stderr, flush=True)


@contextmanager
def show_progress(plan: Plan, left: list[Task], visible: bool) -> Iterator[Advance]:
    """Progress over the tasks that are left."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = Console(stderr=True, force_jupyter=False)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f} of {task.total:,.0f} draws"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    draws = plan.settings.draws
    hidden = not (visible and console.is_terminal)
    with Progress(*columns, console=console, disable=hidden, speed_estimate_period=120) as bar:
        bar.add_task(f"task 0 of {len(left)}", total=draws * sum(len(task.components) for task in left))
        yield Advance(bar, len(left), draws, visible)
