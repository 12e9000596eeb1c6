"""One task of a measurement: the chains of some components on some windows, summed up draw by draw."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from numpy import ndarray

from ..estimator import CONTROL_DRAWS, CovarianceSums, ResolvedSums, joined, untilted
from ..model.components import FULL
from ..model.engine import Engine, Group
from ..model.loading import load_weights
from ..model.shapes import Shape
from ..posterior import Chain, Draw, Settings, stable_seed
from .bank import Bank
from .plan import Task
from .readings import read, sampled, teams
from .store import ComponentRecord


@dataclass(frozen=True)
class Job:
    """What a worker needs to carry out tasks of a plan: the model's folder, the windows as arrays, the settings."""

    folder: str
    device: str
    sampling: ndarray
    loss: ndarray
    probe: ndarray
    settings: Settings
    blocks: int
    width: int = 0
    """Channels kept of each component for resolved rows; 0 for none."""
    tokens_per_pass: int | None = None
    direction: str = ""
    """File of the mean gradient, for a measurement to first order (`run.firstorder`); else none."""
    bank: str | None = None
    """Folder where draws are kept (`spectrolib.run.bank`)."""


Report = Callable[[int], None]
"""Called with the number of draws (of single components) that a task has finished since the last call."""


def run_task(engine: Engine, job: Job, task: Task, report: Report = lambda draws: None) -> dict[str, ComponentRecord]:
    """Sample the chains of a task in lockstep, or take their draws from the bank, and sum up every draw on its shard of
    the probe windows.

    Raises:
        ChainError: if a loss is not finite, or a chain is no longer local.
    """
    settings = job.settings
    size = len(settings.members)
    group, chains = teams(engine, task.components, settings, task.chain)
    windows = job.probe if task.windows is None else job.probe[slice(*task.windows)]
    time = windows.shape[1] - 1
    stretches = _stretches(len(windows) * time, time * max(1, engine.tokens_per_pass // time))
    records = [Recorder(name, settings, task.chain, stretches, job.blocks, job.width) for name in task.components]
    with closing(_draws(group, chains, job, task)) as draws:  # a bank drops what it took of chains that fail
        for reading in read(group, chains, draws, probe=windows, loss=job.loss):
            draw, excess = reading.draw, reading.excess
            for i, record in enumerate(records):
                mine = slice(i * size, (i + 1) * size)
                record.take(draw.index, reading.rise[mine].cpu().numpy(), excess[mine].cpu().numpy(), draw.losses[mine])
            report(len(records))
    return {record.name: record.finish() for record in records}


def _draws(group: Group, chains: list[Chain], job: Job, task: Task) -> Generator[Draw, None, None]:
    """The draws of a task's chains: from the bank if it has them, else sampled and added to the bank, if any."""
    bank = None if job.bank is None else Bank(job.bank)
    kept = None if bank is None else bank.draws(task.components, task.chain, job.settings, group.engine.device)
    if kept is not None:
        return kept
    draws = sampled(group, chains, job.settings, job.sampling)
    return draws if bank is None else bank.keep(draws, chains, job.settings)


def _stretches(tokens: int, most: int) -> list[slice]:
    """The tokens of one pass of the engine after the other: the same ones together, wherever the probe text is cut."""
    return [slice(first, min(first + most, tokens)) for first in range(0, tokens, most)]


class Recorder:
    """Sums up the draws of one team: block by block, and each stretch of tokens separately.

    Stretches are fixed because the last bits of a matrix product (`CovarianceSums.control`) depend on the tokens in it.
    """

    def __init__(self, name: str, settings: Settings, chain: int, stretches: list[slice], blocks: int, width: int = 0):
        self.name, self.settings, self.chain, self.stretches = name, settings, chain, stretches
        half, pairs = chain % 2, 2 if settings.tilt else 1
        self.first_draw = chain // 2 * settings.draws * len(settings.members) // pairs
        seed = stable_seed("resolved", settings.seed, name, half)  # halves share no sketch
        kept = stretches if width and name != FULL else []
        self.resolved = [ResolvedSums(part.stop - part.start, width, seed) for part in kept]
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
        for part, resolved in zip(self.stretches, self.resolved, strict=False):
            own = untilted(excess[:, part] + rise[:, None], self.settings.tilt)  # of l_xy itself, not l_xy - L
            for i, losses in enumerate(own):
                resolved.update(self.first_draw + index * len(own) + i, losses)
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
        resolved = joined(self.resolved) if self.resolved else None
        return ComponentRecord(tuple(blocks), self.rise, self.batch_loss, resolved)


@functools.lru_cache(maxsize=1)
def engine_at(folder: str, device: str, tokens_per_pass: int | None) -> Engine:
    """The engine of the model in a folder; a process keeps the last one."""
    config, weights = load_weights(folder)
    weights = {name: tensor.to(device) for name, tensor in weights.items()}
    return Engine(Shape.from_config(config), weights, tokens_per_pass=tokens_per_pass)
