"""The main job: from a plan to the susceptibility of every probe token for every component.

A `Plan` falls into tasks: a group of components that share a prefix (`engine.groups`) times a chain times a shard of
the probe windows. A task's result depends on the plan alone, so tasks can run anywhere, in any order; their sums are
merged in one fixed order, and the result is the same to the last bit for any number of workers, of shards and of
interruptions.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import CancelledError, Future, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

import torch

from ..checks.locality import check_locality
from ..model.agreement import check_agreement, wants_check
from ..model.engine import one_thread
from ..model.loading import LanguageModel, engine_of
from ..text.jsonfiles import Fields
from .bank import open_bank
from .cost import within
from .firstorder import assemble_gradients, prepare
from .plan import Plan, Task
from .progress import Advance, show_progress
from .result import assemble
from .store import RunFolder, open_result, read_manifest
from .tasks import Job
from .workers import check_executor, open_executor


class WorkerDied(RuntimeError):
    """A worker process, or the scheduler that sends it work, ended without a message."""


def measure(
    plan: Plan,
    out: str | Path,
    *,
    executor="local",
    workers: int | None = None,
    memory: float | None = None,
    bank: str | Path | None = None,
    check: bool | None = None,
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
        memory: bytes that a worker may need, as counted by `spectrolib.run.cost.memory`; see `fitted`.
        bank: a folder of draws (`run.bank`): those that it holds are not sampled again, others are kept there.
            Workers of other machines must see it under the same path. The result is that without a bank.
        check: whether to compare the losses of a few tokens with transformers' before a run begins (`agreement`); by
            default for every model but the bundled one.
        progress: whether to show progress: a bar in a terminal, else a line for each finished task.

    Returns:
        The result as an `xarray.Dataset` (`assemble` says what it holds), as it lies in ``out/result.zarr``.

    Raises:
        ValueError: if the folder belongs to another plan or cannot be written, or the bank to other chains; if executor
            or workers make no sense; if another process writes to the folder; if the smallest shards need more than
            ``memory``; if transformers has other losses; or if γ is too loose for the model (`checks.locality`).
        ChainError: if a chain leaves the neighbourhood of w*; what other tasks finished is kept.
        WorkerDied: if a process was killed from outside, for lack of memory for example, or a cluster's scheduler is
            lost.
    """
    check_executor(executor, workers)
    plan = fitted(plan, out, memory)
    if bank is not None and plan.first_order:
        raise ValueError("a measurement to first order makes no draws that a bank could keep: leave the bank out")
    kept = None if bank is None else str(open_bank(bank, plan).path.resolve())
    if not (Path(out) / "manifest.json").exists():
        if wants_check(plan.model) if check is None else check:
            check_agreement(plan.model, plan.probe)
        if not plan.first_order:
            with one_thread():
                check_locality(engine_of(plan.model), plan.settings, plan.loss, plan.sampled)
    run = RunFolder(out, plan.manifest())
    with run.alone():
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
                width=plan.width,
                tokens_per_pass=plan.tokens_per_pass,
                direction=str(prepare(plan, run).resolve()) if plan.first_order else "",
                bank=kept,
            )
            with (
                show_progress(plan, left, progress) as advance,
                open_executor(executor, workers, job, run.path.resolve() / "tasks", left, advance) as submit,
            ):
                _run_all(submit, left, run, advance)
        if left or not run.result_path.exists():
            run.save_result((assemble_gradients if plan.first_order else assemble)(plan, run))
    return open_result(out)


CARD_SHARE = 0.9
"""Share of a graphics card's memory to fill: the need is counted roughly, and torch keeps some for itself."""


def fitted(plan: Plan, out: str | Path, memory: float | None = None) -> Plan:
    """The plan, cut into enough shards and with passes short enough for a worker's memory.

    Passes are shortened on a graphics card above all. A run that has begun keeps its passes: the last bits depend on
    them.

    Args:
        memory: bytes; by default no limit, or nine tenths of the graphics card that the model is on.

    Raises:
        ValueError: if the smallest shards need more.
    """
    begun = (Path(out) / "manifest.json").exists()
    if begun and plan.tokens_per_pass is None:
        plan = replace(plan, tokens_per_pass=_passes_of(out))
    if memory is None and plan.model.device.type == "cuda":
        memory = CARD_SHARE * torch.cuda.get_device_properties(plan.model.device).total_memory
    return plan if memory is None else within(plan, memory, keep_passes=begun)


def _passes_of(out: str | Path) -> int | None:
    """The tokens in one pass that a run has begun with."""
    held = Fields(read_manifest(out), str(Path(out) / "manifest.json"))
    return held.table("machine", {}).whole("tokens_per_pass", None)


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
