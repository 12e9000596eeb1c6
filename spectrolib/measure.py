"""The main job: from a plan to the susceptibility of every probe token for every component.

A `Plan` falls into tasks: a group of components that share a prefix (`engine.groups`) times a chain. A task's result
depends on the plan alone, so tasks can run anywhere, in any order; their sums are merged in one fixed order, and the
result is the same to the last bit for any number of workers and any number of interruptions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from . import estimator
from .components import FULL
from .corpus import Windows
from .engine import Engine
from .estimator import ESTIMATORS, CovarianceSums
from .models import LanguageModel
from .plan import Plan, Task, one_thread
from .store import ComponentRecord, RunFolder, open_result
from .workers import Advance, Job, check_executor, open_executor, show_progress, work


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
    check_executor(executor, workers)
    run = RunFolder(out, plan.manifest())
    left = [task for task in plan.tasks if not run.has(task.name)]
    if left:
        job = Job(
            folder=_folder(plan.model, run),
            device=str(plan.model.device),
            sampling=plan.sampling.ids,
            loss=plan.loss.ids,
            probe=plan.probe.ids,
            settings=plan.settings,
            blocks=plan.blocks,
        )
        with (
            show_progress(plan, left, progress) as advance,
            open_executor(executor, workers, job, left, advance) as (pool, sent),
        ):
            _run_all(pool, sent, left, run, advance)
    if left or not run.result_path.exists():
        run.save_result(assemble(plan, {task: run.load_task(task.name) for task in plan.tasks}))
    return open_result(out)


def _folder(model: LanguageModel, run: RunFolder) -> str:
    """Where workers load the model from; a model that came from no folder is saved beside its run."""
    if model.path is not None:
        return str(Path(model.path).resolve())
    return str(run.save_model(model.config, model.weights))


def _run_all(pool: Executor, job, tasks: list[Task], run: RunFolder, advance: Advance) -> None:
    futures: dict[Future, Task] = {pool.submit(work, job, task): task for task in tasks}
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


# The result ----------------------------------------------------------------------------------------------------------


def assemble(plan: Plan, records: Mapping[Task, Mapping[str, ComponentRecord]]):
    """The labelled result of all tasks, as an `xarray.Dataset`.

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
        "sample_covariance": table(lambda name: estimator.merge_all(columns[name]).sample_covariance()),
        "control_covariance": (
            ("control", "token", "component"),
            np.stack([estimator.merge_all(sums).controls for sums in columns.values()], axis=-1).astype(np.float32),
        ),
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
            "control": list(estimator.CONTROLS),
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
    with one_thread():
        return Engine.of(plan.model).losses(plan.probe).flatten().cpu().numpy()


def _token_coordinates(model: LanguageModel, probe: Windows) -> dict[str, tuple[str, ndarray]]:
    windows, length = probe.ids.shape
    predicted = probe.ids[:, 1:]
    text = {int(i): model.tokens.decode([int(i)]) if model.tokens else str(i) for i in np.unique(predicted)}
    repeat = lambda values: np.repeat(values, length - 1)  # noqa: E731
    return {
        "sequence": ("token", repeat(np.arange(windows))),
        "position": ("token", np.tile(np.arange(1, length), windows)),
        "token_id": ("token", predicted.flatten()),
        "text": ("token", np.array([text[int(i)] for i in predicted.flatten()], dtype=object)),
        "domain": ("token", repeat(np.asarray(probe.domain, dtype=object))),
        "document": ("token", repeat(np.asarray(probe.document, dtype=object))),
    }
