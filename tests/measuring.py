"""A small measurement that several tests share; as a script, `measuring.py FOLDER OUT WORKERS`, it carries one out."""

import sys
import time
from concurrent.futures import Executor, Future
from dataclasses import replace
from pathlib import Path

import numpy as np

from spectrolib.estimator import CovarianceSums
from spectrolib.model.loading import LanguageModel
from spectrolib.posterior import Settings
from spectrolib.run.measure import measure
from spectrolib.run.plan import Plan
from spectrolib.run.store import ComponentRecord
from spectrolib.text.corpus import Windows

VOCABULARY = 64
SETTINGS = Settings(
    nbeta=10.0,
    gamma=100.0,
    step_size=2e-3,
    preconditioner="none",
    batch_size=4,
    chains=2,
    draws=8,
    steps_between_draws=3,
    burn_in=2,
)
TEAM = replace(SETTINGS, draws=2, steps_between_draws=1, burn_in=1, batch_size=2, antithetic=True, tilt=5.0)
"""Teams, so that every sum has something in it."""


def language_model(folder: Path) -> LanguageModel:
    return LanguageModel(name="small", path=folder)


def windows(seed: int, count: int, length: int = 9) -> Windows:
    ids = np.random.default_rng(seed).integers(0, VOCABULARY, (count, length))
    return Windows(
        ids, np.array(["prose", "code"])[np.arange(count) % 2], np.array([f"text {i}" for i in range(count)])
    )


def plan(folder: Path, settings: Settings = SETTINGS, **changes) -> Plan:
    """2 layers of 2 heads: 8 components and the whole model, in 5 groups of 2 chains."""
    fields = {"sampling": windows(0, 20), "loss": windows(1, 4), "probe": windows(2, 6)} | changes
    return Plan(language_model(folder), settings=settings, **fields)


def odd_plan(folder: Path, **changes) -> Plan:
    """11 probe windows of 11 tokens, two in a pass: five passes and a half."""
    text = {"probe": windows(2, 11, length=12), "loss": windows(1, 2, length=12)}
    some = {"components": ("l0h1", "l0 mlp", "unembed"), "tokens_per_pass": 23}
    return plan(folder, TEAM, **text | some | changes)


def random_record(rng: np.random.Generator, tokens: int, blocks: int = 2) -> ComponentRecord:
    """Sums of random numbers."""
    blocks = [CovarianceSums(tokens) for _ in range(blocks)]
    for sums in blocks:
        sums.count, sums.pairs, sums.controlled, sums.mean_phi = 8, 4, 8, rng.standard_normal()
        for name in CovarianceSums.VECTORS:
            setattr(sums, name, rng.standard_normal(getattr(sums, name).shape))
    return ComponentRecord(tuple(blocks), rng.standard_normal(4), rng.standard_normal(4))


def wait_for(condition, what: str, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.005)


class Inline(Executor):
    """Runs every task at once, in this process, in the order of the plan."""

    def __init__(self):
        self.tasks = []

    def submit(self, function, /, *args, **kwargs) -> Future:
        self.tasks.append(args[1].name)
        future: Future = Future()
        try:
            future.set_result(function(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def files(folder: Path) -> dict[str, bytes]:
    """The bytes of every file below a folder."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


if __name__ == "__main__":
    folder, out, workers = sys.argv[1:]
    measure(plan(Path(folder)), out, workers=int(workers), progress=False)
