"""The main job: from a plan to the susceptibility of every probe token for every component.

A `Plan` falls into tasks: a group of components that share a prefix (`engine.groups`) times a chain. A task's result
depends on the plan alone, so tasks can run anywhere, in any order; their sums are merged in one fixed order, and the
result is the same to the last bit for any number of workers and any number of interruptions.
"""

from __future__ import annotations

import functools
import gc
import json
import math
import multiprocessing
import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray

from . import estimator
from .components import FULL, Shape, check, layer_of, names
from .corpus import (
    Document,
    Windows,
    bundled_windows,
    hub_documents,
    tokenizer_hash,
    windows_from_documents,
)
from .engine import Engine, groups
from .estimator import ESTIMATORS, CovarianceSums
from .models import LanguageModel, load_model, load_weights
from .posterior import Chain, Settings, lockstep
from .profiles import Profile, get
from .store import ComponentRecord, RunFolder, open_result

FORMAT = 1
"""Version of the run folder: raised when the numbers that a plan leads to change."""


@dataclass(frozen=True)
class Plan:
    """Everything that a measurement depends on.

    Raises:
        ValueError: for an unknown component or estimator, windows of a wrong shape, or token ids beyond the vocabulary.
    """

    model: LanguageModel
    sampling: Windows
    """Windows that minibatches are drawn from."""
    loss: Windows
    """Fixed windows on which L(w) and L(w*) are both taken."""
    probe: Windows
    """Fixed windows whose every token but the first gets a susceptibility."""
    settings: Settings
    components: tuple[str, ...] = ()
    """Components to measure; all of them by default. The unrestricted chain is always added."""
    estimator: estimator.Estimator = "two_chain"
    blocks: int = 2
    """Consecutive blocks into which the draws of a chain are summed: two give split halves."""

    def __post_init__(self) -> None:
        shape = self.shape
        if not self.components:
            object.__setattr__(self, "components", tuple(names(shape)))
        for component in self.components:
            check(component, shape)
        if FULL in self.components or len(set(self.components)) < len(self.components):
            raise ValueError("components must be named once each, without 'full': the unrestricted chain is always run")
        if self.estimator not in ESTIMATORS:
            raise ValueError(f"unknown estimator {self.estimator!r}: it must be one of {ESTIMATORS}")
        if not 1 <= self.blocks <= self.settings.draws:
            raise ValueError(f"blocks must lie between 1 and the {self.settings.draws} draws, got {self.blocks}")
        own = _tokenizer_hashes(self.model)
        for role in ("sampling", "loss", "probe"):
            windows = getattr(self, role)
            highest = int(windows.ids.max())
            if highest >= shape.vocabulary:
                raise ValueError(
                    f"the {role} windows hold token id {highest}, beyond the model's vocabulary of {shape.vocabulary}: "
                    "they were made with another tokenizer"
                )
            if own and windows.provenance.get("tokenizer") not in {None, *own}:
                raise ValueError(
                    f"the {role} windows were made with another tokenizer than that of model {self.model.name!r}: "
                    "cut windows from text with the model's own"
                )

    @property
    def shape(self) -> Shape:
        return Shape.from_config(self.model.model.config.to_dict())

    @classmethod
    def from_profile(
        cls, profile: str | Profile, *, model: LanguageModel | None = None, seed: int = 0, **changes
    ) -> Plan:
        """The plan of a profile; ``changes`` replace fields of the plan (``settings``, ``components``, ...)."""
        profile = get(profile) if isinstance(profile, str) else profile
        model = model or load_model(profile.model)
        windows = {} if {"sampling", "loss", "probe"} <= changes.keys() else profile_windows(profile, model)
        fields = windows | {"settings": replace(profile.settings, seed=seed)} | changes
        return cls(model=model, **fields)

    @property
    def tasks(self) -> list[Task]:
        """All tasks, the longest first, so that workers finish together."""
        together = sorted(groups([*self.components, FULL]), key=lambda group: -_operations(self, group))
        return [Task(group, chain) for group in together for chain in range(self.settings.chains)]

    def manifest(self) -> dict:
        """What identifies the plan, as JSON-able values."""
        from . import __version__

        return {
            "format": FORMAT,
            "model": {"name": self.model.name, "revision": self.model.revision, "hash": self.model.hash},
            "windows": {
                role: {
                    "shape": list(windows.ids.shape),
                    "hash": windows.hash,
                    "source": windows.provenance.get("source"),
                }
                for role, windows in (("sampling", self.sampling), ("loss", self.loss), ("probe", self.probe))
            },
            "settings": {k: v.item() if isinstance(v, np.generic) else v for k, v in asdict(self.settings).items()},
            "components": list(self.components),
            "estimator": self.estimator,
            "blocks": self.blocks,
            "versions": {"spectrolib": __version__, "torch": torch.__version__, "numpy": np.__version__},
            "machine": {"processor": platform.machine(), "device": self.model.model.device.type},
        }

    def cost(self) -> Cost:
        """What the plan takes, counted."""
        return _cost(self)


def _tokenizer_hashes(model: LanguageModel) -> set[str]:
    """Hashes of the model's tokenizer: as transformers dresses it, and without the post-processor that this adds."""
    if model.tokenizer is None:
        return set()
    from tokenizers import Tokenizer

    backend = getattr(model.tokenizer, "backend_tokenizer", model.tokenizer)
    bare = Tokenizer.from_str(backend.to_str())
    bare.post_processor = None
    return {tokenizer_hash(model.tokenizer), tokenizer_hash(bare)}


def profile_windows(profile: Profile, model: LanguageModel) -> dict[str, Windows]:
    """The sampling, loss and probe windows of a profile, disjoint."""
    if profile.source == "bundled":
        pool = bundled_windows("sampling").cut(profile.length)
        probe = bundled_windows("heldout").cut(profile.length)
        wanted = profile.sampling_windows + profile.loss_windows
        if wanted > len(pool) or profile.probe_windows > len(probe):
            raise ValueError(f"profile {profile.name!r} asks for more windows than the bundled ones")
        held = pool.take(_spread(len(pool), profile.loss_windows))
        rest = pool.take(np.setdiff1d(np.arange(len(pool)), _spread(len(pool), profile.loss_windows)))
        return {
            "sampling": rest.take(_spread(len(rest), profile.sampling_windows)),
            "loss": held,
            "probe": probe.take(_spread(len(probe), profile.probe_windows)),
        }
    total = profile.sampling_windows + profile.loss_windows + profile.probe_windows
    return text_windows(profile, model, hub_documents(profile.source, limit=2 * total), profile.source)


def text_windows(
    profile: Profile, model: LanguageModel, documents: Iterable[Document], source: str
) -> dict[str, Windows]:
    """Sampling, loss and probe windows of a profile's sizes, disjoint, cut from any documents.

    Raises:
        ValueError: if the model has no tokenizer, or the documents hold too little text.
    """
    if model.tokenizer is None:
        raise ValueError(f"model {model.name!r} has no tokenizer to cut text into windows with")
    sizes = {"sampling": profile.sampling_windows, "loss": profile.loss_windows, "probe": profile.probe_windows}
    total = sum(sizes.values())
    windows = windows_from_documents(
        documents, model.tokenizer, length=profile.length, count=total, seed=0, source=source
    )
    order = np.random.default_rng(0).permutation(total)
    parts = np.split(order, np.cumsum(list(sizes.values()))[:-1])
    return {role: windows.take(np.sort(part)) for role, part in zip(sizes, parts, strict=True)}


def _spread(available: int, wanted: int) -> Int[ndarray, " wanted"]:
    """Indices spread evenly over what is available, so that every domain is met."""
    return np.arange(wanted) * available // wanted


# One task ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """Components that share a prefix, and the number of a chain."""

    components: tuple[str, ...]
    chain: int

    @property
    def name(self) -> str:
        """A name fit for a file; it says which task of its plan this is."""
        layer = layer_of(self.components[0])
        return f"{self.components[0] if layer is None else f'layer{layer}'}.chain{self.chain}"


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


Report = Callable[[int], None]
"""Called with the number of draws (of single components) that a task has finished since the last call."""


def run_task(engine: Engine, job: Job, task: Task, report: Report = lambda draws: None) -> dict[str, ComponentRecord]:
    """Sample the chains of a task in lockstep and sum up every draw.

    At each draw, g = L(w) - L(w*) is taken on the loss windows, and the excess loss d_xy = l_xy - L on the probe
    windows, relative to its value at w*: a constant that no estimator sees, and that would cost digits.

    Raises:
        ChainError: if a loss is not finite, or a chain is no longer local.
    """
    settings, group = job.settings, engine.group(task.components)
    chains = [
        Chain(start, settings, name=name, chain=task.chain)
        for name, start in zip(task.components, group.start, strict=True)
    ]
    gradients = group.minibatch_gradients(job.sampling, settings, task.chain)
    loss, probe = group.cache(job.loss), group.cache(job.probe)
    loss_start = engine.losses(job.loss).double().mean()
    probe_start = engine.losses(job.probe).double()
    sums = [[CovarianceSums(probe_start.numel()) for _ in range(job.blocks)] for _ in chains]
    rises, batch_losses = np.empty((2, len(chains), settings.draws))
    for draw in lockstep(chains, gradients, settings):
        rise = group.losses(draw.positions, loss).double().mean(dim=(1, 2)) - loss_start
        excess = group.losses(draw.positions, probe).double() - probe_start - rise[:, None, None]
        rises[:, draw.index], batch_losses[:, draw.index] = rise.tolist(), draw.losses
        block = draw.index * job.blocks // settings.draws
        for i, chain in enumerate(chains):
            chain.check(rises[i, draw.index], draw.index)
            sums[i][block].update(rises[i, draw.index], excess[i].flatten().cpu().numpy())
        report(len(chains))
    return {name: ComponentRecord(tuple(sums[i]), rises[i], batch_losses[i]) for i, name in enumerate(task.components)}


@functools.lru_cache(maxsize=1)
def _engine(folder: str, device: str) -> Engine:
    config, weights = load_weights(folder)
    return Engine(Shape.from_config(config), {name: tensor.to(device) for name, tensor in weights.items()})


_report: Callable[[Task, int], None] = lambda task, draws: None  # noqa: E731


def _work(job: Job, task: Task) -> dict[str, ComponentRecord]:
    """A task as a worker runs it: on one thread, since the bits depend on their number, and processes beat threads."""
    with _one_thread():
        _report(task, 0)  # a worker that was told to stop begins no other task
        return run_task(_engine(job.folder, job.device), job, task, functools.partial(_report, task))


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _start_worker(stop, done, slots: dict[Task, int]) -> None:
    """A local worker counts its draws where its parent looks, stops when told to, and dies with its parent."""

    def report(task: Task, draws: int) -> None:
        if stop.value:
            raise KeyboardInterrupt
        done[slots[task]] += draws

    global _report
    _report = report
    gc.freeze()  # so that no collection touches, and so copies, the memory that workers share
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent decides
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


# All tasks -----------------------------------------------------------------------------------------------------------


class WorkerDied(RuntimeError):
    """A worker process ended without a word."""


def measure(plan: Plan, out: str | Path, *, executor="local", workers: int | None = None, progress: bool = True):
    """Carry out a plan, or what is left of it, and return its result.

    A script that calls this needs the guard ``if __name__ == "__main__":``, as all scripts do that start processes.

    Args:
        plan: what to measure.
        out: the run folder. Finished tasks are kept there; an interrupted run continues where it stopped.
        executor: "local" (processes of this machine), a `concurrent.futures.Executor`, or a Dask client or the address
            of its scheduler. Workers of other machines must see the model's folder under the same path.
        workers: processes of the local executor; by default as many as there are cores, or one on a GPU.
        progress: whether to show progress: a bar in a terminal, else a line for each finished task.

    Returns:
        The result as an `xarray.Dataset` (`assemble` says what it holds), as it lies in ``out/result.zarr``.

    Raises:
        ValueError: if the folder belongs to another plan or cannot be written, or executor or workers make no sense.
        ChainError: if a chain leaves the neighbourhood of w*; what other tasks finished is kept.
        WorkerDied: if a process was killed from outside, for lack of memory for example.
    """
    _check_executor(executor, workers)
    run = RunFolder(out, plan.manifest())
    left = [task for task in plan.tasks if not run.has(task.name)]
    if left:
        job = Job(
            folder=_folder(plan.model, run),
            device=str(plan.model.model.device),
            sampling=plan.sampling.ids,
            loss=plan.loss.ids,
            probe=plan.probe.ids,
            settings=plan.settings,
            blocks=plan.blocks,
        )
        with (
            _progress(plan, left, progress) as advance,
            _executor(executor, workers, job, left, advance) as (pool, sent),
        ):
            _run_all(pool, sent, left, run, advance)
    if left or not run.result_path.exists():
        run.save_result(assemble(plan, {task: run.load_task(task.name) for task in plan.tasks}))
    return open_result(out)


def _check_executor(executor, workers: int | None) -> None:
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


def _folder(model: LanguageModel, run: RunFolder) -> str:
    """Where workers load the model from; a model that came from no folder is saved beside its run."""
    if model.path is not None:
        return str(Path(model.path).resolve())
    return str(run.save_model(model.model.config.to_dict(), Engine.of(model).weights))


def _run_all(pool: Executor, job, tasks: list[Task], run: RunFolder, advance: _Advance) -> None:
    futures: dict[Future, Task] = {pool.submit(_work, job, task): task for task in tasks}
    try:
        for future in as_completed(futures):
            run.save_task(futures[future].name, future.result())
            advance.finished(futures[future])
    except BrokenProcessPool as error:
        raise WorkerDied(
            "a worker process died. Was there too little memory? Use fewer workers. Is this a script? It needs the "
            'guard if __name__ == "__main__". Finished tasks are kept: the same call goes on'
        ) from error
    finally:
        for future, task in futures.items():  # where one failed, others may have just finished
            if not future.cancel() and future.done() and not future.exception() and not run.has(task.name):
                run.save_task(task.name, future.result())


@contextmanager
def _executor(
    executor, workers: int | None, job: Job, tasks: list[Task], advance: _Advance
) -> Iterator[tuple[Executor, object]]:
    """Where tasks run, and the job as they get it there."""
    if isinstance(executor, Executor):
        yield executor, job
    elif executor == "local":
        count = workers or (1 if job.device.startswith("cuda") else available_cores())
        with _local(min(count, len(tasks)), tasks, advance) as pool:
            yield pool, job
    else:
        from distributed import Client

        client = executor if isinstance(executor, Client) else Client(executor)
        try:
            yield client.get_executor(pure=False), client.scatter(job, broadcast=True, hash=False)
        finally:
            if client is not executor:
                client.close()


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
    context.set_forkserver_preload(["spectrolib.measure"])
    resource_tracker.ensure_running()  # first, since it unblocks what is blocked
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # the new process inherits this
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


@contextmanager
def _local(count: int, tasks: list[Task], advance: _Advance) -> Iterator[Executor]:
    """Processes of this machine. They share two pieces of memory with this one, so a dead worker can hold no lock."""
    context = start_forkserver()
    stop, done = context.RawValue("b", 0), context.RawArray("q", len(tasks))
    slots = {task: i for i, task in enumerate(tasks)}
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=_start_worker, initargs=(stop, done, slots))
    try:
        with advance.watching(done):
            yield pool
    finally:
        stop.value = 1
        pool.shutdown(wait=True, cancel_futures=True)


class _Advance:
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
def _progress(plan: Plan, left: list[Task], visible: bool) -> Iterator[_Advance]:
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
        yield _Advance(bar, len(left), draws, visible)


# The result ----------------------------------------------------------------------------------------------------------


def assemble(plan: Plan, records: Mapping[Task, Mapping[str, ComponentRecord]]):
    """The labelled result of all tasks, as an `xarray.Dataset`.

    Dimensions: ``token`` (every probe token but the first of each window), ``component``, ``sampled`` (the components
    and ``full``), ``chain``, ``draw``, ``half`` (chains of even and of odd number), ``block`` (draws so far).

    Variables:
        susceptibility: (token, component), by the plan's estimator; nats², up to a factor of each component.
        standard_error: (token, component), its jackknife standard error over chains.
        covariance: (token, component), Cov_C(g, d): minus the one-chain estimate.
        restricted_moment: (token, component), mean_C[d] relative to its value at w*, nats.
        full_moment: (token,), mean_F[d] likewise.
        rise: (sampled,), mean of g = L(w) - L(w*), nats.
        half_susceptibility: (estimator, half, block, token, component), estimates from each half of the chains with
            their first draws up to ``block``; only with two chains or more.
        loss_rise, batch_loss: (sampled, chain, draw), traces of g and of the minibatch loss, nats.
        loss: (token,), loss at w*, nats.
    """
    import xarray as xr

    settings, chains = plan.settings, range(plan.settings.chains)
    task_of = {name: task.components for task in plan.tasks for name in task.components}
    record = {(name, k): records[Task(task_of[name], k)][name] for name in task_of for k in chains}

    def pooled(name: str, k: int, blocks: int = plan.blocks) -> CovarianceSums:
        return estimator.merge_all(record[name, k].sums[:blocks])

    full = [pooled(FULL, k) for k in chains]
    columns = {name: [pooled(name, k) for k in chains] for name in plan.components}
    terms = {
        name: estimator.terms(estimator.merge_all(sums), estimator.merge_all(full)) for name, sums in columns.items()
    }

    def table(of: Callable[[str], ndarray]) -> tuple[tuple[str, str], ndarray]:
        return ("token", "component"), np.stack([of(name) for name in plan.components], axis=1)

    sampled = [*plan.components, FULL]
    variables = {
        "susceptibility": table(lambda name: estimator.susceptibility(plan.estimator, columns[name], full)),
        "standard_error": table(lambda name: estimator.standard_error(plan.estimator, columns[name], full)),
        "covariance": table(lambda name: terms[name].covariance),
        "restricted_moment": table(lambda name: terms[name].restricted),
        "full_moment": ("token", terms[plan.components[0]].full),
        "rise": ("sampled", np.array([np.mean([record[name, k].rise for k in chains]) for name in sampled])),
        "loss": ("token", _start_losses(plan)),
    }
    for trace, key in (("loss_rise", "rise"), ("batch_loss", "batch_loss")):
        values = np.array([[getattr(record[name, k], key) for k in chains] for name in sampled])
        variables[trace] = (("sampled", "chain", "draw"), values)
    if settings.chains > 1:
        variables["half_susceptibility"] = (
            ("estimator", "half", "block", "token", "component"),
            _halves(plan, pooled).astype(np.float32),
        )
    block_draws = [-(-settings.draws * (b + 1) // plan.blocks) for b in range(plan.blocks)]
    return xr.Dataset(
        variables,
        coords={
            "component": list(plan.components),
            "sampled": sampled,
            "estimator": list(ESTIMATORS),
            "block": block_draws,
            **_token_coordinates(plan.model, plan.probe),
        },
        attrs={"manifest": json.dumps(plan.manifest(), sort_keys=True), "estimator": plan.estimator},
    )


def _halves(
    plan: Plan, pooled: Callable[..., CovarianceSums]
) -> Float[ndarray, "estimator half block token component"]:
    chains = range(plan.settings.chains)

    def estimate(name: str, kind: estimator.Estimator, half: int, blocks: int) -> ndarray:
        mine = [k for k in chains if k % 2 == half]
        return estimator.susceptibility(
            kind, [pooled(name, k, blocks) for k in mine], [pooled(FULL, k, blocks) for k in mine]
        )

    return np.stack(
        [
            [
                [
                    np.stack([estimate(name, kind, half, b) for name in plan.components], axis=1)
                    for b in range(1, plan.blocks + 1)
                ]
                for half in (0, 1)
            ]
            for kind in ESTIMATORS
        ]
    )


def _start_losses(plan: Plan) -> Float[ndarray, " token"]:
    with _one_thread():
        return Engine.of(plan.model).losses(plan.probe).flatten().cpu().numpy()


def _token_coordinates(model: LanguageModel, probe: Windows) -> dict[str, tuple[str, ndarray]]:
    windows, length = probe.ids.shape
    predicted = probe.ids[:, 1:]
    text = {int(i): model.tokenizer.decode([int(i)]) if model.tokenizer else str(i) for i in np.unique(predicted)}
    repeat = lambda values: np.repeat(values, length - 1)  # noqa: E731
    return {
        "sequence": ("token", repeat(np.arange(windows))),
        "position": ("token", np.tile(np.arange(1, length), windows)),
        "token_id": ("token", predicted.flatten()),
        "text": ("token", np.array([text[int(i)] for i in predicted.flatten()], dtype=object)),
        "domain": ("token", repeat(np.asarray(probe.domain, dtype=object))),
        "document": ("token", repeat(np.asarray(probe.document, dtype=object))),
    }


# What it costs -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """What a plan takes, counted."""

    tasks: int
    steps: int
    """Steps of single components."""
    token_steps: float
    """Tokens that go through a gradient step."""
    token_evaluations: float
    """Tokens whose loss is evaluated at a draw."""
    operations: float
    """Floating-point operations of the matrix products that these need."""

    def seconds(self, workers: int, *, efficiency: float = 0.4) -> float:
        """A guess of the time on this machine: its matrix-product rate, measured now, times ``efficiency``."""
        return self.operations / (workers * efficiency * matmul_rate())


def _cost(plan: Plan) -> Cost:
    s, sampled = plan.settings, [*plan.components, FULL]
    chains = s.chains * len(sampled)
    return Cost(
        tasks=len(plan.tasks),
        steps=chains * s.steps,
        token_steps=float(chains * s.steps * _batch_tokens(plan)),
        token_evaluations=float(chains * s.draws * _draw_tokens(plan)),
        operations=s.chains * _operations(plan, sampled),
    )


def _batch_tokens(plan: Plan) -> int:
    return plan.settings.batch_size * (plan.sampling.length - 1) if plan.settings.needs_gradient else 0


def _draw_tokens(plan: Plan) -> int:
    return sum(len(windows) * (windows.length - 1) for windows in (plan.probe, plan.loss))


def _operations(plan: Plan, components: Iterable[str]) -> float:
    """Operations of one chain of each component."""
    s, shape = plan.settings, plan.shape
    return sum(
        s.steps * _batch_tokens(plan) * step_operations(name, shape, plan.sampling.length - 1)
        + s.draws * _draw_tokens(plan) * evaluation_operations(name, shape, plan.probe.length - 1)
        for name in components
    )


def _layer_operations(shape: Shape, time: int) -> float:
    """Operations of one layer for one token: four projections, the MLP, causal attention over half the window."""
    return 2 * shape.width * (4 * shape.width + 2 * shape.mlp) + 2 * shape.width * time


def _own_operations(component: str, shape: Shape, time: int) -> float:
    """Operations of the component alone for one token."""
    if component.endswith("mlp"):
        return 4 * shape.width * shape.mlp
    if layer_of(component) is not None:
        return 8 * shape.width * shape.head_dim + 2 * shape.head_dim * time
    return 0.0


def evaluation_operations(component: str, shape: Shape, time: int) -> float:
    """Operations that the loss of one token needs: the component that moved, the layers after it, the unembedding."""
    layer = layer_of(component)
    after = {"unembed": 0, "embed": shape.layers, FULL: shape.layers}.get(component)
    after = shape.layers - 1 - layer if after is None else after
    unembed = 2 * shape.width * shape.vocabulary
    return _own_operations(component, shape, time) + after * _layer_operations(shape, time) + unembed


def step_operations(component: str, shape: Shape, time: int) -> float:
    """Operations of one token in a gradient step: the forward pass, and as many again for each gradient that is needed.

    Frozen weights pass a gradient on to their inputs (one product more), moving weights take one (one more), ``full``
    does both.
    """
    forward = evaluation_operations(component, shape, time)
    return forward * 3 if component == FULL else 2 * forward


@functools.cache
def matmul_rate(size: int = 512, repeats: int = 8) -> float:
    """Operations a second of a float32 matrix product on one thread of this machine's processor, measured."""
    a, b = torch.ones(size, size), torch.ones(size, size)
    times = []
    with _one_thread():
        for _ in range(repeats):
            begin = time.perf_counter()
            a @ b
            times.append(time.perf_counter() - begin)
    return 2 * size**3 / min(times)
