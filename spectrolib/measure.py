"""The main job: from a plan to the susceptibility of every probe token for every component.

A `Plan` falls into tasks: a group of components that share a prefix (`engine.groups`) times a chain times a shard of
the probe windows. A task's result depends on the plan alone, so tasks can run anywhere, in any order; their sums are
merged in one fixed order, and the result is the same to the last bit for any number of workers, of shards and of
interruptions.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray

from . import estimator
from .bank import open_bank
from .components import FULL
from .corpus import Windows
from .cost import SUM_BYTES, within
from .engine import one_thread
from .estimator import ESTIMATORS, CovarianceSums, Estimator
from .models import LanguageModel, engine_of
from .plan import Plan, Task
from .store import RunFolder, TaskFile, joined, open_result, read_manifest
from .workers import Advance, Job, check_executor, open_executor, show_progress


class WorkerDied(RuntimeError):
    """A worker process ended without a word, or what sends it work did."""


def measure(
    plan: Plan,
    out: str | Path,
    *,
    executor="local",
    workers: int | None = None,
    memory: float | None = None,
    bank: str | Path | None = None,
    progress: bool = True,
):
    """Carry out a plan, or what is left of it, and return its result.

    A script that calls this needs the guard ``if __name__ == "__main__":``, as all scripts do that start processes.

    Args:
        plan: what to measure.
        out: the run folder. Finished tasks are kept there; an interrupted run continues where it stopped.
        executor: "local" (processes of this machine), a `concurrent.futures.Executor`, or a Dask client or the address
            of its scheduler. Workers of other machines must see the model's folder under the same path.
        workers: processes of the local executor; by default as many as there are cores, or one on a GPU.
        memory: bytes that a worker may need, as counted by `spectrolib.cost.memory`; see `fitted`.
        bank: a folder of draws (`spectrolib.bank`): those that it holds are not sampled again, others are kept there.
            Workers of other machines must see it under the same path. The result is that without a bank.
        progress: whether to show progress: a bar in a terminal, else a line for each finished task.

    Returns:
        The result as an `xarray.Dataset` (`assemble` says what it holds), as it lies in ``out/result.zarr``.

    Raises:
        ValueError: if the folder belongs to another plan or cannot be written, or the bank to other chains; if executor
            or workers make no sense, or if the smallest shards need more than ``memory``.
        ChainError: if a chain leaves the neighbourhood of w*; what other tasks finished is kept.
        WorkerDied: if a process was killed from outside, for lack of memory for example, or a cluster's scheduler is
            lost.
    """
    check_executor(executor, workers)
    plan = fitted(plan, out, memory)
    kept = None if bank is None else str(open_bank(bank, plan).path.resolve())
    run = RunFolder(out, plan.manifest())
    left = plan.left(run.finished())
    if left:
        job = Job(
            folder=_folder(plan.model, run),
            device=str(plan.model.device),
            sampling=plan.sampling.ids,
            loss=plan.loss.ids,
            probe=plan.probe.ids,
            settings=plan.settings,
            blocks=plan.blocks,
            tokens_per_pass=plan.tokens_per_pass,
            bank=kept,
        )
        with (
            show_progress(plan, left, progress) as advance,
            open_executor(executor, workers, job, run.path.resolve() / "tasks", left, advance) as submit,
        ):
            _run_all(submit, left, run, advance)
    if left or not run.result_path.exists():
        run.save_result(assemble(plan, run))
    return open_result(out)


CARD_SHARE = 0.9
"""Of a graphics card's memory, what the count may fill: it is good to a factor, and torch keeps some for itself."""


def fitted(plan: Plan, out: str | Path, memory: float | None = None) -> Plan:
    """The plan in as many shards, and with passes as short, as a worker's memory asks for.

    Passes are shortened on a graphics card above all. A run that has begun keeps its own: they decide the last bits.

    Args:
        memory: bytes; by default no limit, or nine tenths of the graphics card that the model is on.

    Raises:
        ValueError: if the smallest shards need more.
    """
    begun = (Path(out) / "manifest.json").exists()
    if begun and plan.tokens_per_pass is None:
        plan = replace(plan, tokens_per_pass=read_manifest(out).get("machine", {}).get("tokens_per_pass"))
    if memory is None and plan.model.device.type == "cuda":
        memory = CARD_SHARE * torch.cuda.get_device_properties(plan.model.device).total_memory
    return plan if memory is None else within(plan, memory, keep_passes=begun)


def _folder(model: LanguageModel, run: RunFolder) -> str:
    """Where workers load the model from; a model that came from no folder is saved beside its run."""
    if model.path is not None:
        return str(Path(model.path).resolve())
    return str(run.save_model(model.config, model.weights))


def _run_all(submit: Callable[[Task], Future], tasks: list[Task], run: RunFolder, advance: Advance) -> None:
    futures: dict[Future, Task] = {}
    try:
        futures |= {submit(task): task for task in tasks}
        for future in as_completed(futures):
            _keep(run, futures[future], future)
            advance.finished(futures[future])
    except Exception as error:
        death = _death(error)
        if death is None:
            raise
        raise WorkerDied(f"{death}. Finished tasks are kept: the same call goes on") from error
    finally:
        for future, task in futures.items():  # where one failed, others may have just finished
            if not future.cancel() and future.done() and not future.exception() and not run.has(task.name):
                _keep(run, task, future)


def _keep(run: RunFolder, task: Task, future: Future) -> None:
    records = future.result()
    if records is not None:  # else a local worker wrote them
        run.save_task(task.name, records)


def _death(error: Exception) -> str | None:
    """What an error says of a worker or a scheduler that is gone; None of another error."""
    if isinstance(error, BrokenProcessPool):
        return (
            "a worker process died. Was there too little memory? Use fewer workers, or --memory. Is this a script? It "
            'needs the guard if __name__ == "__main__"'
        )
    kind = type(error).__name__ if type(error).__module__.startswith("distributed") else ""
    if kind == "KilledWorker":
        return "workers of the Dask cluster died again and again at one task. Was there too little memory? Use --memory"
    if isinstance(error, CancelledError) or kind in ("CommClosedError", "FutureCancelledError"):
        return "the Dask scheduler, or the connection to it, is lost"
    return None


# The result ----------------------------------------------------------------------------------------------------------


def assemble(plan: Plan, run: RunFolder):
    """The labelled result of all tasks, as an `xarray.Dataset`.

    Partial sums are read a few tokens at a time, so that this needs little more memory than the result itself.

    Dimensions: ``token`` (every probe token but the first of each window), ``component``, ``sampled`` (the components
    and ``full``), ``chain``, ``draw``, ``half`` (chains of even and of odd number), ``block`` (draws so far).

    Variables:
        susceptibility: (token, component), by the plan's estimator; nats², up to a factor of each component.
        standard_error: (token, component), its jackknife standard error over chains.
        covariance: (token, component), Cov_C(g, d): minus the one-chain estimate. From the response of tilted chains
            where there are any.
        sample_covariance: (token, component), the plain one over the same draws.
        control_covariance: (control, token, component), with g permuted over draws, and with noise in its place.
        restricted_moment: (token, component), mean_C[d] relative to its value at w*, nats.
        full_moment: (token,), mean_F[d] likewise.
        rise: (sampled,), mean of g = L(w) - L(w*), nats.
        half_susceptibility: (estimator, half, block, token, component), estimates from each half of the chains with
            their first draws up to ``block``; only with two chains or more.
        loss_rise, batch_loss: (sampled, chain, draw), traces of g and of the minibatch loss, nats.
        loss: (token,), loss at w*, nats.
    """
    import xarray as xr

    settings, names, sampled = plan.settings, list(plan.components), [*plan.components, FULL]
    tokens, chains, halves = plan.probe.ids[:, 1:].size, range(settings.chains), settings.chains > 1
    files = _shards(run, plan.whole)
    shards = {name: [files[task] for task in plan.whole if name in task.components] for name in sampled}
    table = lambda *dims, kind=np.float64: np.empty((*dims, tokens, len(names)), dtype=kind)  # noqa: E731
    tables, full_moment = table(len(TABLES)), np.empty(tokens)
    controls = table(len(estimator.CONTROLS), kind=np.float32)
    half = table(len(ESTIMATORS), 2, plan.blocks, kind=np.float32) if halves else None
    for part in _slabs(tokens, settings.chains * plan.blocks):
        full = [_blocks(files, FULL, part) for files in shards[FULL]]
        full_moment[part] = _pooled(full).mean_losses
        for i, name in enumerate(names):
            own = [_blocks(files, name, part) for files in shards[name]]
            tables[:, part, i] = _table(plan.estimator, own, full)
            controls[:, part, i] = _pooled(own).controls
            if half is not None:
                half[..., part, i] = _halves(own, full)
    traces = {name: [files[0][1].record(name, 0, 0) for files in shards[name]] for name in sampled}
    variables = {
        **{name: (("token", "component"), values) for name, values in zip(TABLES, tables, strict=True)},
        "control_covariance": (("control", "token", "component"), controls),
        "full_moment": ("token", full_moment),
        "rise": ("sampled", np.array([np.mean([traces[name][k].rise for k in chains]) for name in sampled])),
        "loss": ("token", _start_losses(plan)),
    }
    for trace, key in (("loss_rise", "rise"), ("batch_loss", "batch_loss")):
        values = np.array([[getattr(traces[name][k], key) for k in chains] for name in sampled])
        variables[trace] = (("sampled", "chain", "draw"), values)
    if half is not None:
        variables["half_susceptibility"] = (("estimator", "half", "block", "token", "component"), half)
    block_draws = [-(-settings.draws * (b + 1) // plan.blocks) for b in range(plan.blocks)]
    return xr.Dataset(
        variables,
        coords={
            "component": names,
            "sampled": sampled,
            "estimator": list(ESTIMATORS),
            "control": list(estimator.CONTROLS),
            "block": block_draws,
            **_token_coordinates(plan.model, plan.probe),
        },
        attrs={"manifest": json.dumps(plan.manifest(), sort_keys=True), "estimator": plan.estimator},
    )


TABLES = ("susceptibility", "standard_error", "covariance", "sample_covariance", "restricted_moment")
SLAB_BYTES = 32 * 2**20
"""Partial sums that `assemble` holds at once, of one component and of the whole model."""

Blocks = list[tuple[CovarianceSums, ...]]
"""The sums of each chain, block by block."""


def _slabs(tokens: int, parts: int) -> list[slice]:
    """Stretches of the tokens, of which so many partial sums of two components can be held."""
    count = -(-tokens * 2 * parts * SUM_BYTES // SLAB_BYTES)
    ends = [tokens * i // count for i in range(count + 1)]
    return [slice(*ends) for ends in pairwise(ends)]


def _shards(run: RunFolder, tasks: list[Task]) -> dict[Task, list[tuple[int, TaskFile]]]:
    """The files of the shards of each task, and the first token of each."""
    finished, found = run.finished(), {}
    for task in tasks:
        stretches = sorted(finished[task.name], key=lambda stretch: stretch or (0, 0))
        files = [TaskFile(run.task_file(replace(task, windows=stretch).name)) for stretch in stretches]
        starts = np.cumsum([0, *(file.tokens for file in files[:-1])]).tolist()
        found[task] = list(zip(starts, files, strict=True))
    return found


def _blocks(files: list[tuple[int, TaskFile]], name: str, part: slice) -> tuple[CovarianceSums, ...]:
    """The sums of one chain over some of the tokens, from the shards that hold them."""
    records = [
        file.record(name, max(part.start - first, 0), part.stop - first).sums
        for first, file in files
        if first < part.stop and part.start < first + file.tokens
    ]
    return records[0] if len(records) == 1 else tuple(map(joined, zip(*records, strict=True)))


def _pooled(chains: Blocks, blocks: int | None = None) -> CovarianceSums:
    """All chains together, with their first blocks of draws."""
    return estimator.merge_all(estimator.merge_all(own[:blocks]) for own in chains)


def _table(kind: Estimator, own: Blocks, full: Blocks) -> list[Float[ndarray, " token"]]:
    """What `TABLES` names."""
    chains, whole = [_pooled([sums]) for sums in own], [_pooled([sums]) for sums in full]
    terms = estimator.terms(estimator.merge_all(chains), estimator.merge_all(whole))
    return [
        estimator.susceptibility(kind, chains, whole),
        estimator.standard_error(kind, chains, whole),
        terms.covariance,
        estimator.merge_all(chains).sample_covariance(),
        terms.restricted,
    ]


def _halves(own: Blocks, full: Blocks) -> Float[ndarray, "estimator half block token"]:
    """Estimates from the chains of even and of odd number, with their first blocks of draws."""

    def estimate(kind: Estimator, half: int, blocks: int) -> ndarray:
        return estimator.susceptibility(kind, *([_pooled([sums], blocks) for sums in c[half::2]] for c in (own, full)))

    counts = range(1, len(own[0]) + 1)
    return np.array([[[estimate(kind, half, b) for b in counts] for half in (0, 1)] for kind in ESTIMATORS])


def _start_losses(plan: Plan) -> Float[ndarray, " token"]:
    with one_thread():
        engine = engine_of(plan.model)
        engine.tokens_per_pass = plan.tokens_per_pass or engine.tokens_per_pass
        return engine.losses(plan.probe).flatten().cpu().numpy()


def _token_coordinates(model: LanguageModel, probe: Windows) -> dict[str, tuple[str, ndarray]]:
    windows, length = probe.ids.shape
    predicted = probe.ids[:, 1:]
    text = {int(i): model.tokens.decode([int(i)]) if model.tokens else str(i) for i in np.unique(predicted)}
    repeat = lambda values: np.repeat(values, length - 1)  # noqa: E731
    return {
        "sequence": ("token", repeat(np.arange(windows))),
        "position": ("token", np.tile(np.arange(1, length), windows)),
        "token_id": ("token", predicted.flatten()),
        "first_token": ("token", repeat(probe.ids[:, 0])),  # of the token's window: nothing predicts it
        "text": ("token", np.array([text[int(i)] for i in predicted.flatten()], dtype=object)),
        "domain": ("token", repeat(np.asarray(probe.domain, dtype=object))),
        "document": ("token", repeat(np.asarray(probe.document, dtype=object))),
    }
