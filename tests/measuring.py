"""A small measurement that several tests share; as a script, `measuring.py FOLDER OUT WORKERS`, it carries one out."""

import sys
from concurrent.futures import Executor, Future
from pathlib import Path

import numpy as np

from spectrolib.model.loading import LanguageModel
from spectrolib.posterior import Settings
from spectrolib.run.measure import measure
from spectrolib.run.plan import Plan
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
