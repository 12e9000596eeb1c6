"""The published run, and the measured timings that the counts of `spectrolib.run.cost` are held against.

The timings lie in ``timings.json`` beside this file: runs of the engine on random tokens, each with the rate of matrix
products that the same machine reached at the time. `cpu_seconds` foretells such a run from its counts; its two
constants are fitted to the two smallest runs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from spectrolib.model.components import FULL
from spectrolib.model.operations import evaluation_operations, step_operations
from spectrolib.model.shapes import PYTHIA, Shape
from spectrolib.posterior import Settings
from spectrolib.run.cost import Work, breakdown, operations

from . import shipped_table


def shape_named(name: str) -> Shape:
    """A Pythia, or the shape of the bundled model."""
    return replace(PYTHIA["pythia-14m"], vocabulary=4096) if name == "bundled" else PYTHIA[name]


class Measured(NamedTuple):
    """A timed measurement on processor cores, with random tokens: what the count is calibrated against."""

    name: str
    """Of the model's shape."""
    windows: tuple[int, int, int, int, int]
    """Tokens of a window; windows to probe, for L(w), to sample from; windows in a batch."""
    chains: int
    draws: int
    steps: int
    """Between draws."""
    components: tuple[str, ...]
    cores: int
    seconds: float
    rate: float
    """Operations a second of a matrix product on one core, measured in the same run."""

    @property
    def work(self) -> Work:
        """The run by its numbers."""
        length, probe, loss, sampling, batch = self.windows
        settings = Settings(
            nbeta=10.0,
            gamma=300.0,
            step_size=2e-4,
            preconditioner="none",
            batch_size=batch,
            chains=self.chains,
            draws=self.draws,
            steps_between_draws=self.steps,
        )
        sizes = {"tokens": probe * (length - 1), "loss_tokens": loss * (length - 1), "length": length}
        return Work(
            shape_named(self.name),
            settings=settings,
            sampling_windows=sampling,
            components=self.components,
            blocks=1,
            **sizes,
        )

    @property
    def fraction(self) -> float:
        """The share of the matrix-product rate that was reached."""
        return operations(self.work) / (self.seconds * self.cores * self.rate)


def timed(kind: str) -> list[Measured]:
    """The timed runs: ``processor`` (CPU seconds of one thread) or ``wall clock`` (with the start of processes)."""
    runs = shipped_table("timings")[kind]["runs"]
    return [
        Measured(**run | {"windows": tuple(run["windows"]), "components": tuple(run["components"])}) for run in runs
    ]


PRODUCTS = 0.689
"""Share of the matrix-product rate that the products of the engine reach, fitted to the two smallest timed runs."""
SECONDS_PER_NUMBER = 2.05e-10
"""Of one core, for every number that the operations between the products read or write; fitted with it."""


def cpu_seconds(work: Work, cores: int, rate: float) -> float:
    """Seconds on processor cores, by the calibration; logits stay in the cache.

    Args:
        rate: operations a second of a matrix product on one core (`spectrolib.run.cost.matmul_rate`).
    """
    found = breakdown(work)
    moved = sum(part.numbers - part.logits for part in found)
    return (sum(part.operations for part in found) / (PRODUCTS * rate) + SECONDS_PER_NUMBER * moved) / cores


# The published run ---------------------------------------------------------------------------------------------------


class Published(NamedTuple):
    """What the paper's follow-up says of its run, from one careful secondary source [S]."""

    model: str
    tokens: int
    settings: Settings
    card: str
    card_hours: float


PUBLISHED = Published(
    "pythia-1.4b",
    4_250_000,
    Settings(nbeta=10.0, gamma=300.0, step_size=1e-5, batch_size=16, chains=4, draws=100, steps_between_draws=160),
    "h200",
    4800.0,
)


def full_forwards(work: Work) -> dict[str, float]:
    """Operations where every loss is a full forward pass, as in `devinterp`, by activity; no prefix is kept.

    A step runs the whole model forward, and back from the end to the component; it takes a gradient of the weights of
    the component alone, so that half of a full backward pass is enough.
    """
    s, shape, time = work.settings, work.shape, work.length - 1
    forward = evaluation_operations("embed", shape, time)
    evaluations = s.chains * s.draws * work.members * len(work.sampled)
    stepped = s.chains * s.steps * work.batch_tokens
    back = sum(
        2 * forward if component == FULL else step_operations(component, shape, time) / 2 for component in work.sampled
    )
    return {
        "steps": stepped * (forward * len(work.sampled) + back),
        "probe losses": evaluations * work.tokens * forward,
        "loss windows": evaluations * work.loss_tokens * forward,
    }
