"""Measuring to first order: gradients in place of chains (`spectrolib.model.gradients`).

A task is a stretch of the probe windows; one backward pass for each token serves all components. The result holds
resolved rows, whose halves are independent sketches, and the paper's one number a component to first order,

    χ_xy = -Cov_C(L, l_xy - L) = -∇_C L · (∇_C l_xy - ∇_C L) / γ  +  O(1/γ²)        (nβ = 0) [D],

with L the mean loss of the sampling windows.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ..model.components import blocks
from ..model.engine import Engine, one_thread
from ..model.gradients import TokenGradients, mean_gradient
from ..model.loading import engine_of
from .plan import Plan, Task
from .resolved import labelled
from .result import token_coordinates
from .store import GradientRecord, RunFolder, read_gradients

DIRECTION = "mean_gradient.npz"
"""The gradient of the mean loss, in the run folder: every worker reads it."""


def prepare(plan: Plan, run: RunFolder) -> Path:
    """Write the gradient of the mean loss of the sampling windows, unless it is there; returns its file."""
    file = run.path / DIRECTION
    if not file.exists():
        with one_thread():
            found = mean_gradient(engine_of(plan.model, tokens_per_pass=plan.tokens_per_pass), plan.sampling)
        run.save_arrays(file, {name: slope.cpu().numpy() for name, slope in found.items()})
    return file


@functools.lru_cache(maxsize=1)
def _gradients(engine: Engine, components: tuple[str, ...], width: int, seed: int, direction: str) -> TokenGradients:
    with np.load(direction) as stored:
        mean = {name: torch.from_numpy(stored[name]).to(engine.device) for name in stored.files}
    return TokenGradients(engine, components, width=width, seed=seed, mean=mean)


def run_gradients(engine: Engine, job, task: Task, report: Callable[[int], None]) -> GradientRecord:
    """The gradients of a stretch of the probe windows."""
    windows = job.probe[slice(*(task.windows or (0, None)))]
    given = (engine, task.components, job.width, job.settings.seed, job.direction)
    found = list(_gradients(*given)(windows, report))
    return GradientRecord(
        losses=torch.cat([own.losses for own in found]).cpu().numpy(),
        rows=torch.cat([own.rows for own in found], dim=1).cpu().numpy(),
        slopes=torch.cat([own.slopes for own in found]).cpu().numpy(),
    )


def assemble_gradients(plan: Plan, run: RunFolder):
    """The labelled result of all tasks, as an `xarray.Dataset`.

    Dimensions: ``token``, ``component``, ``half`` (independent sketches), ``channel``.

    Variables:
        susceptibility: (token, component), to first order (module docstring); nats², up to a factor of each component.
        resolved: (half, token, channel), sketched gradients; ``channel_component`` says whose. Those of a component
            have unit length on average over the text.
        resolved_scale: (half, component), that length before: of ∇_C l, nats per unit of weight.
        loss: (token,), loss at w*, nats.
    """
    import xarray as xr

    (whole,) = plan.whole
    records = [read_gradients(run.task_file(task.name)) for task in plan.pieces(whole)]
    rows = np.concatenate([record.rows for record in records], axis=1)
    slopes = np.concatenate([record.slopes for record in records]).astype(np.float64)
    resolved = labelled(plan.components, [[half[:, i] for i in range(len(plan.components))] for half in rows])
    channels = resolved.pop("channel_component")
    with np.load(run.path / DIRECTION) as stored:
        own = _squared_lengths(plan, {name: torch.from_numpy(stored[name]).double() for name in stored.files})
    chi = -(slopes - own) / plan.settings.gamma
    return xr.Dataset(
        {
            "susceptibility": (("token", "component"), chi),
            "loss": ("token", np.concatenate([record.losses for record in records]).astype(np.float64)),
            **resolved,
        },
        coords={
            "component": list(plan.components),
            "channel_component": channels,
            **token_coordinates(plan.model, plan.probe),
        },
        attrs={
            "manifest": json.dumps(plan.manifest(), sort_keys=True),
            "estimator": "one_chain",
            "first_order": 1,
        },
    )


def _squared_lengths(plan: Plan, mean: dict[str, torch.Tensor]) -> np.ndarray:
    """|∇_C L|² of each component."""
    return np.array(
        [sum(float(block.of(mean).square().sum()) for block in blocks(name, plan.shape)) for name in plan.components]
    )
