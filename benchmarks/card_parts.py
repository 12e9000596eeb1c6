"""The parts of `card`: each yields results, a key and JSON-able values, as they come.

What one of them can't do (`attempt`) is an error under its key, and the next result follows.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from first_order import at_start
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import spectrolib
from spectrolib.model import gradients
from spectrolib.model.components import FULL, names
from spectrolib.model.engine import Engine, Group, groups
from spectrolib.model.gradients import TokenGradients, mean_gradient
from spectrolib.model.loss import sweep
from spectrolib.posterior import Chain, Settings
from spectrolib.run import cost
from spectrolib.run.profiles import BOOK, PAPER
from spectrolib.run.readings import read, sampled, teams

Results = Iterator[tuple[str, object]]
ROOT = Path(__file__).resolve().parents[1]
LIBRARY = str(Path(spectrolib.__file__).parent)
AGREES = 1e-3
"""Of the root mean square: float32 leaves 1e-6 to 1e-4 of a gradient, and another formula leaves far more."""


@dataclass(frozen=True)
class Bench:
    """Where and how large."""

    device: torch.device
    tiny: bool
    seconds: float
    """That the part has."""

    @classmethod
    def of(cls, device: str, tiny: bool, seconds: float | None) -> Bench:
        found = device or ("cuda" if torch.cuda.is_available() else "cpu")
        return cls(torch.device(found), tiny, seconds or 60.0)

    @property
    def on_card(self) -> bool:
        return self.device.type == "cuda"

    @property
    def shapes(self) -> tuple[str, ...]:
        return ("bundled",) if self.tiny else ("bundled", "pythia-14m")

    def wait(self) -> None:
        """Until the card has done what it was told."""
        if self.on_card:
            torch.cuda.synchronize(self.device)

    def engine(self, shape: str, dtype: torch.dtype = torch.float32) -> Engine:
        """The bundled model, or random weights of a shape, on the device."""
        own = at_start(shape)
        return Engine(own.shape, {name: w.to(self.device, dtype) for name, w in own.weights.items()})

    def time(self, run: Callable[[], object], least: float = 0.4) -> float:
        """Seconds of one run, the mean of as many as take so long together, after one that warms up."""
        least = 0.0 if self.tiny else least
        run()
        self.wait()
        count, begin = 0, time.perf_counter()
        while count == 0 or time.perf_counter() - begin < least:
            run()
            self.wait()
            count += 1
        return (time.perf_counter() - begin) / count

    def peak(self, run: Callable[[], object]) -> float | None:
        """Gigabytes of the card that a run takes at most, what is there before included."""
        if not self.on_card:
            return None
        torch.cuda.reset_peak_memory_stats(self.device)
        run()
        self.wait()
        return torch.cuda.max_memory_allocated(self.device) / 1e9


def attempt(key: str, run: Callable[[], object]) -> tuple[str, object]:
    """A result, or the error in its place."""
    try:
        return key, run()
    except Exception as error:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return key, {"error": f"{type(error).__name__}: {str(error)[:500]}"}


def windows(vocabulary: int, count: int, length: int, seed: int) -> np.ndarray:
    """Random token ids."""
    return np.random.default_rng(seed).integers(0, vocabulary, (count, length))


def error_of(found: Tensor, true: Tensor) -> float:
    """The largest difference, as a share of the root mean square."""
    found, true = found.double().cpu(), true.double().cpu()
    return float((found - true).abs().max() / true.square().mean().sqrt().clamp_min(1e-30))


# The machine, and what it can do at best -----------------------------------------------------------------------------


def machine(bench: Bench) -> Results:
    """Versions, the card, the commit."""

    def version(name: str) -> str | None:
        from importlib import metadata

        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return None

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    listed = ("torch", "numpy", "transformers", "triton", "devinterp", "xarray", "zarr")
    yield "versions", {"python": platform.python_version()} | {name: version(name) for name in listed}
    yield attempt("commit", lambda: {"hash": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain"))})
    yield "processor", {"machine": platform.machine(), "cores": len(os.sched_getaffinity(0))}
    if bench.on_card:
        card = torch.cuda.get_device_properties(bench.device)
        yield "card", {"name": card.name, "memory": card.total_memory, "multiprocessors": card.multi_processor_count}
        yield "cuda", {"version": torch.version.cuda, "capability": [card.major, card.minor]}


@contextmanager
def precision(kind: str) -> Iterator[None]:
    """Products of float32 in TF32, for ``tf32``; else in float32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if kind == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def product(bench: Bench, kind: str, rows: int, inner: int, columns: int) -> dict:
    """Rate and error of a product of random matrices."""
    generator = torch.Generator(bench.device).manual_seed(0)
    a, b = (torch.randn(size, generator=generator, device=bench.device) for size in ((rows, inner), (inner, columns)))
    exact = a[:64].double() @ b.double()
    if kind == "bf16":
        a, b = a.bfloat16(), b.bfloat16()
    with precision(kind):
        seconds, error = bench.time(lambda: a @ b), error_of((a @ b)[:64], exact)
    return {"operations_per_second": 2 * rows * inner * columns / seconds, "largest_error": error}


def bandwidth(bench: Bench) -> float:
    """Bytes read and written a second by a copy."""
    numbers = torch.ones(2**18 if bench.tiny else 2**28, device=bench.device)
    into = torch.empty_like(numbers)
    return 2 * 4 * len(numbers) / bench.time(lambda: into.copy_(numbers))


def ceilings(bench: Bench) -> Results:
    """Products in each precision, large ones and the engine's own; bytes moved; how long a kernel takes to start."""
    largest = 64 if bench.tiny else 8192
    own = {
        "large": (largest, largest, largest),
        "unembedding of pythia": (1024, 128, 50304),
        "unembedding of bundled": (1024, 128, 4096),
        "into the MLP": (65536, 128, 512),
    }
    for name, size in own.items():
        size = tuple(min(n, 64) for n in size) if bench.tiny else size
        for kind in cost.PRECISIONS:
            yield attempt(f"{name}, {kind}", lambda kind=kind, size=size: product(bench, kind, *size))
    yield attempt("bytes_per_second", lambda: bandwidth(bench))

    def launch() -> float:
        one = torch.ones(1, device=bench.device)
        return bench.time(lambda: [one.add_(1) for _ in range(1000)]) / 1000

    yield attempt("seconds_of_a_kernel", launch)


# Agreement -----------------------------------------------------------------------------------------------------------


class SameNoise(TorchFunctionMode):
    """Noise from the processor's generator, on any device: chains then go the same way on both."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is Tensor.normal_:
            (into,), generator = args, (kwargs or {})["generator"]
            return into.copy_(torch.empty(into.shape).normal_(generator=generator))
        return function(*args, **(kwargs or {}))


def _same_noise(chains: list[Chain]) -> None:
    for chain in chains:
        chain.generator = torch.Generator().manual_seed(chain.generator.initial_seed())


def sizes(bench: Bench) -> tuple[int, int]:
    """Windows, and tokens of a window, where numbers are compared."""
    return (2, 9) if bench.tiny else (8, 65)


TEAM = replace(BOOK.settings, batch_size=2, chains=1, draws=2, steps_between_draws=2, burn_in=0)
"""Teams of four, as the profile book has them."""


def positions_of(group: Group, seed: int = 0) -> list[Tensor]:
    """w* of each member, shaken a little, alike on every device."""
    generator = torch.Generator().manual_seed(seed)
    return [w + 0.003 * torch.randn(len(w), generator=generator).to(w) for w in group.start]


def agreement(bench: Bench, engines: tuple[Engine, Engine] | None = None) -> Results:
    """Losses, gradients, whole chains with the same noise, and gradients to first order, on both devices.

    Each is the largest difference as a share of the root mean square, for every component.
    """
    one, other = engines or (at_start("bundled"), bench.engine("bundled"))
    count, length = sizes(bench)
    text, sampling = (windows(one.shape.vocabulary, n, length, seed) for n, seed in ((count, 0), (4 * count, 1)))
    every, worst = [*names(one.shape), FULL], Counter()
    for members in groups(every):

        def compare(members=members) -> dict:
            found = {}
            pair = [_at_positions(engine, members, text) for engine in (one, other)]
            walks = [_chain(engine, members, sampling, text) for engine in (one, other)]
            for i, name in enumerate(members):
                found[name] = {key: error_of(pair[1][key][i], pair[0][key][i]) for key in pair[0]}
                found[name] |= {key: error_of(walks[1][key][i], walks[0][key][i]) for key in walks[0]}
                for key, error in found[name].items():
                    worst[key] = max(worst[key], error)
            return found

        yield attempt(", ".join(members), compare)

    def first_order() -> dict:
        rows = [_first_order(engine, sampling, text[:2]) for engine in (one, other)]
        found = {}
        for i, name in enumerate(names(one.shape)):
            found[name] = {
                "rows": error_of(rows[1].rows[:, :, i], rows[0].rows[:, :, i]),
                "slopes": error_of(rows[1].slopes[:, i], rows[0].slopes[:, i]),
            }
            worst["first order"] = max(worst["first order"], *found[name].values())
        return found

    yield attempt("first order", first_order)
    yield "largest", dict(worst)
    yield "agrees", all(error < AGREES for error in worst.values())


def _at_positions(engine: Engine, members: tuple[str, ...], text: np.ndarray) -> dict[str, list[Tensor]]:
    group = engine.group(members)
    cached, positions = group.cache(text), positions_of(group)
    _, slopes = group.gradients(positions, cached, np.arange(len(text)))
    return {"losses": list(group.losses(positions, cached)), "gradients": slopes}


def _chain(engine: Engine, members: tuple[str, ...], sampling: np.ndarray, text: np.ndarray) -> dict:
    """What a chain reads of each component: the change of every token's loss at its draws."""
    group, chains = teams(engine, members, TEAM, 0)
    _same_noise(chains)
    with SameNoise():
        found = [one.change for one in read(group, chains, sampled(group, chains, TEAM, sampling), probe=text)]
    size = len(TEAM.members)
    return {"chains": [torch.stack([own[i * size : (i + 1) * size] for own in found]) for i in range(len(members))]}


def _first_order(engine: Engine, sampling: np.ndarray, text: np.ndarray):
    mean = mean_gradient(engine, sampling)
    found = list(TokenGradients(engine, names(engine.shape), width=16, mean=mean)(text))
    return type(found[0])(
        torch.cat([own.losses for own in found]),
        torch.cat([own.rows for own in found], dim=1),
        torch.cat([own.slopes for own in found]),
    )


# Speed ---------------------------------------------------------------------------------------------------------------


def probe_tokens(bench: Bench) -> tuple[int, ...]:
    return (16,) if bench.tiny else (20_000, 200_000)


def chosen_groups(engine: Engine, tiny: bool) -> list[tuple[str, ...]]:
    """The embedding, an early, a middle and the last layer, the unembedding, the whole model."""
    every = groups([*names(engine.shape), FULL])
    layers = [group for group in every if group[0].startswith("l")]
    some = [layers[0]] if tiny else [layers[0], layers[len(layers) // 2], layers[-1]]
    return [*some, *(group for group in every if group not in layers)]


def settings_of(bench: Bench) -> Settings:
    """Those of the profile paper: teams of four, minibatches of 16 windows of 257 tokens."""
    own = replace(PAPER.settings, chains=1)
    return replace(own, batch_size=2, steps_between_draws=1, burn_in=0) if bench.tiny else own


def work_of(bench: Bench, engine: Engine, tokens: int, group: tuple[str, ...]) -> cost.Work:
    """One chain of a group, one draw after one step."""
    settings = replace(settings_of(bench), draws=1, steps_between_draws=1, burn_in=0)
    length = sizes(bench)[1] if bench.tiny else PAPER.length
    own = tuple(name for name in group if name != FULL) or (names(engine.shape)[0],)
    loss = 2 * (length - 1)
    return cost.Work(engine.shape, tokens, settings, length, loss, 64, components=own, blocks=1, channels=0)


def ideal(work: cost.Work, group: tuple[str, ...], activity: str) -> tuple[float, float]:
    """Operations, and bytes moved, that an activity takes for a group (`cost.breakdown`)."""
    parts = [p for p in cost.breakdown(work) if p.activity == activity and (p.kind == FULL) == (group == (FULL,))]
    return sum(p.operations for p in parts), 4 * sum(p.numbers for p in parts)


def sampling(bench: Bench) -> Results:
    """Steps and readings of chains, group by group: tokens a second, shares of both ceilings, memory.

    Then what a whole measurement by the profile paper's settings takes, and the efficiency that `cost.hours` assumes.
    """
    limits = {}
    for kind in ("float32", "tf32"):
        limits[kind] = product(bench, kind, *[64 if bench.tiny else 4096] * 3)["operations_per_second"]
    limits["bytes"] = bandwidth(bench)
    yield "ceilings", limits
    for shape in bench.shapes:
        for tokens in probe_tokens(bench):
            engine = bench.engine(shape)
            spent = {}
            for group in chosen_groups(engine, bench.tiny):

                def measured(engine=engine, tokens=tokens, group=group, spent=spent) -> dict:
                    found = _group_speed(bench, engine, tokens, group, limits)
                    spent[group] = found
                    return found

                yield attempt(f"{shape}, {tokens}: {group[0]}", measured)
            yield attempt(f"{shape}, {tokens}", lambda e=engine, t=tokens, s=spent: _in_all(bench, e, t, s))
    engine, tokens = bench.engine("bundled"), probe_tokens(bench)[0]
    middle = chosen_groups(engine, bench.tiny)[0]
    for passes in (64, 128) if bench.tiny else (8192, 16384, 65536, 262144):
        engine.tokens_per_pass = passes
        yield attempt(f"passes of {passes} tokens", lambda e=engine: _group_speed(bench, e, tokens, middle, limits))


def _group_speed(bench: Bench, engine: Engine, tokens: int, group: tuple[str, ...], limits: dict) -> dict:
    work = work_of(bench, engine, tokens, group)
    time_ = work.length - 1
    probe = windows(engine.shape.vocabulary, max(1, tokens // time_), work.length, 0)
    held, chains = teams(engine, group, work.settings, 0)
    cached = held.cache(probe)
    endless = replace(work.settings, draws=10**6)
    steps = sampled(held, chains, endless, windows(engine.shape.vocabulary, 64, work.length, 1))
    found = {"peak_gb": bench.peak(lambda: (next(steps), held.losses([c.position for c in chains], cached)))}
    step = bench.time(lambda: next(steps))
    losses = bench.time(lambda: held.losses([chain.position for chain in chains], cached))
    for name, seconds, activity, count in (
        ("step", step, "steps", work.batch_tokens * len(group)),
        ("losses", losses, "probe losses", len(chains) * probe[:, 1:].size),
    ):
        operations, moved = ideal(work, group, activity)
        found[name] = {
            "seconds": seconds,
            "tokens_per_second": count / seconds,
            "of_float32_products": operations / seconds / limits["float32"],
            "of_tf32_products": operations / seconds / limits["tf32"],
            "of_bandwidth": moved / seconds / limits["bytes"],
        }
    device = "cuda" if bench.on_card else "cpu"
    found["counted_gb"] = sum(cost.memory(work, device, engine.tokens_per_pass).values()) / 1e9
    return found


def _in_all(bench: Bench, engine: Engine, tokens: int, spent: dict) -> dict:
    """A whole measurement, from the groups that were timed; layers between them by straight lines."""
    settings = settings_of(bench) if bench.tiny else PAPER.settings
    layers = {int(group[0][1 : group[0].find("h")]): found for group, found in spent.items() if group[0][0] == "l"}
    alone = [found for group, found in spent.items() if group[0][0] != "l"]

    def of(found: dict) -> float:
        return settings.steps * found["step"]["seconds"] + settings.draws * found["losses"]["seconds"]

    every = np.interp(range(engine.shape.layers), sorted(layers), [of(layers[layer]) for layer in sorted(layers)])
    seconds = settings.chains * (every.sum() + sum(map(of, alone)))
    work = replace(work_of(bench, engine, tokens, (names(engine.shape)[0],)), settings=settings, components=())
    found = {"hours": seconds / 3600, "tokens_per_second": tokens / seconds}
    if bench.on_card:
        name = torch.cuda.get_device_properties(bench.device).name.lower().replace(" ", "")
        known = [key for key in cost.CARDS if key in name]
        for key in known:
            least = cost.hours(work, cost.CARDS[key], efficiency=1.0).hours
            found |= {"card": key, "hours_by_the_data_sheet": least, "efficiency": least / found["hours"]}
    return found


def first_order(bench: Bench) -> Results:
    """Gradients of tokens by the clock, with more or fewer of them going back together."""
    usual, length = gradients.TARGETS, sizes(bench)[1] if bench.tiny else 257
    limit = bench.seconds / 8
    for shape in bench.shapes:
        engine = bench.engine(shape)
        width = 2 if bench.tiny else 2048 // len(names(engine.shape))
        own = attempt(shape, lambda e=engine, w=width: TokenGradients(e, names(e.shape), width=w))
        if isinstance(own[1], dict):
            yield own
            continue
        text = windows(engine.shape.vocabulary, max(1, probe_tokens(bench)[-1] // (length - 1)), length, 0)
        for targets in (4,) if bench.tiny else (32, 64, 128, 256):
            gradients.TARGETS = targets
            yield attempt(f"{shape}, {targets} together", lambda s=own[1], t=text: _gradient_speed(bench, s, t, limit))
        gradients.TARGETS = usual


def _gradient_speed(bench: Bench, sketcher: TokenGradients, text: np.ndarray, limit: float) -> dict:
    """Of as many windows as fit a time, after one."""
    list(sketcher(text[:1]))
    bench.wait()
    done, begin = 0, time.perf_counter()
    peak = bench.peak(lambda: list(sketcher(text[:1])))
    begin = time.perf_counter()
    for found in sketcher(text):
        bench.wait()
        done += len(found.losses)
        if time.perf_counter() - begin > limit:
            break
    seconds = time.perf_counter() - begin
    rate = done / seconds
    whole = {str(tokens): tokens / rate for tokens in probe_tokens(bench)}
    return {"tokens": done, "seconds": seconds, "tokens_per_second": rate, "seconds_for": whole, "peak_gb": peak}


# Waiting -------------------------------------------------------------------------------------------------------------


class Waits(TorchFunctionMode):
    """Counts what makes the processor wait for the card: numbers taken from it, and copies to it, by the line."""

    TAKEN = ("item", "tolist", "__bool__", "__float__", "__int__", "__index__", "cpu", "nonzero")
    GIVEN = ("as_tensor", "tensor")

    def __init__(self, device: torch.device):
        super().__init__()
        self.device, self.lines = device, Counter()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name, kwargs = getattr(function, "__name__", ""), kwargs or {}
        of = args[0].device.type if args and isinstance(args[0], Tensor) else None
        if (name in self.TAKEN and of == self.device.type) or (name in self.GIVEN and of != self.device.type):
            self.lines[f"{_caller()}: {name}"] += 1
        return function(*args, **kwargs)


def _caller() -> str:
    """The line of the library that is running."""
    frame = sys._getframe(1)
    while frame is not None and not frame.f_code.co_filename.startswith(LIBRARY):
        frame = frame.f_back
    if frame is None:
        return "elsewhere"
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"


def waits(bench: Bench, run: Callable[[], object]) -> dict:
    """How often a run waits, as the code shows it, and, on a card, as torch's own check counts it."""
    found = {}
    with Waits(bench.device) as seen:
        run()
    found |= {"seen": sum(seen.lines.values()), "lines": dict(seen.lines.most_common(20))}
    if bench.on_card:
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        ours = [w for w in said if "synchronizing" in str(w.message)]
        places = Counter(f"{Path(w.filename).name}:{w.lineno}" for w in ours)
        found |= {"counted": len(ours), "counted_lines": dict(places.most_common(20))}
    return found


def synchronisations(bench: Bench) -> Results:
    """How often a step, and a draw with its readings, wait for the card. The aim is none in a chain."""
    engine = bench.engine("bundled")
    count, length = sizes(bench)
    text = windows(engine.shape.vocabulary, 4 * count, length, 0)
    for group in chosen_groups(engine, bench.tiny):

        def in_chain(group=group) -> dict:
            held, chains = teams(engine, group, TEAM, 0)
            endless = replace(TEAM, draws=10**6, steps_between_draws=1)
            draws = sampled(held, chains, endless, text)
            readings = read(held, chains, draws, probe=text)
            next(readings)
            return {"a step": waits(bench, lambda: next(draws)), "a draw": waits(bench, lambda: next(readings))}

        yield attempt(group[0], in_chain)


# Precision -----------------------------------------------------------------------------------------------------------


class Rounded(TorchDispatchMode):
    """Matrix products of numbers rounded to TF32 or bf16, summed in float32: what a card's units make of them."""

    FACTORS: ClassVar = {"mm": (0, 1), "bmm": (0, 1), "addmm": (1, 2), "addmm_": (1, 2), "baddbmm": (1, 2)}

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        factors = self.FACTORS.get(function._schema.name.removeprefix("aten::"), ())
        args = [self.round(arg) if i in factors else arg for i, arg in enumerate(args)]
        return function(*args, **(kwargs or {}))

    def round(self, x: Tensor) -> Tensor:
        if self.kind == "bf16":
            return x.bfloat16().to(x.dtype)
        bits = x.contiguous().view(torch.int32)
        return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


def precisions(bench: Bench) -> Results:
    """What rounding products does to the change of a loss that a measurement reads, to gradients, and to the speed.

    Truth is float64. Errors are root mean squares, as shares of that of the change itself.
    """
    exact, engine = bench.engine("bundled", torch.float64), bench.engine("bundled")
    count, length = sizes(bench)
    text = windows(engine.shape.vocabulary, 4 * count, length, 0)
    ways = {"float32": lambda: precision("float32"), "bf16, rounded": lambda: Rounded("bf16")}
    ways["tf32, rounded"] = lambda: Rounded("tf32")
    if bench.on_card:
        ways["tf32"] = lambda: precision("tf32")
    for group in chosen_groups(engine, bench.tiny):
        truth = attempt(group[0], lambda g=group: _signal(exact, g, text))[1]
        if "error" in truth:
            yield group[0], truth
            continue
        for name, way in ways.items():

            def compare(group=group, way=way, truth=truth) -> dict:
                with way():
                    found = _signal(engine, group, text)
                share = {key: _rms(found[key] - truth[key]) / _rms(truth[key]) for key in found}
                return {f"error_of_{key}": value for key, value in share.items()}

            yield attempt(f"{group[0]}, {name}", compare)
    group, limits = chosen_groups(engine, bench.tiny)[0], {"float32": 1.0, "tf32": 1.0, "bytes": 1.0}
    for kind in ("float32", "tf32"):
        with precision(kind):
            speed = attempt(kind, lambda: _group_speed(bench, engine, probe_tokens(bench)[0], group, limits))[1]
        found = {name: speed[name]["seconds"] for name in ("step", "losses")} if "error" not in speed else speed
        yield f"seconds, {kind}", found


def _signal(engine: Engine, members: tuple[str, ...], text: np.ndarray) -> dict[str, Tensor]:
    """Changes of losses at shaken weights, and gradients there, in float64."""
    group = engine.group(members)
    cached, dtype = group.cache(text), engine.weights[engine.shape.embed].dtype
    at = [w.float().to(dtype) for w in positions_of(group)]
    start = group.losses(group.start, cached).double()
    slopes = group.gradients(at, cached, np.arange(len(text)))[1]
    return {"changes": group.losses(at, cached).double() - start, "gradients": torch.cat(slopes).double()}


def _rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


# What other ways would gain ------------------------------------------------------------------------------------------


class AllFinite(TorchFunctionMode):
    """Leaves out the question whether sums are finite, for which the processor waits (`loss.sweep`)."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is Tensor.isfinite:
            return torch.ones((), dtype=torch.bool)  # on the processor
        return function(*args, **(kwargs or {}))


def gains(bench: Bench) -> Results:
    """A compiled loss and compiled layers, a step and a reading in a CUDA graph: seconds, and whether they agree."""
    backend = "eager" if bench.tiny else "inductor"
    for shape in bench.shapes:
        engine = bench.engine(shape)
        count, length = (2, 9) if bench.tiny else (64, 257)
        ids = engine.ids(windows(engine.shape.vocabulary, count, length, 0))
        targets = ids[:, 1:].flatten()
        hidden = torch.randn(len(targets), engine.shape.width, device=bench.device)

        def plain_loss(h: Tensor, w: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(h @ w.T, y, reduction="none")

        def loss(engine=engine, hidden=hidden, targets=targets) -> dict:
            given = (hidden, engine.unembedding, targets)
            compiled = torch.compile(plain_loss, dynamic=False, backend=backend)
            ways = {"ours": lambda: sweep(*given), "compiled": lambda: compiled(*given)}
            ways["plain"] = lambda: plain_loss(*given)
            return _beside(bench, ways)

        def layers(engine=engine, ids=ids) -> dict:
            with torch.no_grad():
                x = engine.residual(ids[:, :-1], 0)

                def run(x: Tensor) -> Tensor:
                    for frozen in engine.layers:
                        x, _ = frozen.forward(x, ids.shape[1] - 1)
                    return x

                compiled = torch.compile(run, dynamic=False, backend=backend)
                return _beside(bench, {"ours": lambda: run(x), "compiled": lambda: compiled(x)})

        yield attempt(f"{shape}: losses", loss)
        yield attempt(f"{shape}: layers", layers)
        for group in chosen_groups(engine, bench.tiny):
            for name, learn in (("step", True), ("reading", False)):
                call = lambda e=engine, g=group, learn=learn: _in_graph(bench, e, g, learn)  # noqa: E731
                yield attempt(f"{shape}: {name} of {group[0]} in a graph", call)


def _beside(bench: Bench, ways: dict[str, Callable[[], Tensor]]) -> dict:
    """Seconds of each way, and how far its result is from that of the first."""
    found = {name: run().clone() for name, run in ways.items()}
    first = next(iter(found.values()))
    return {name: {"seconds": bench.time(run), "differs": error_of(found[name], first)} for name, run in ways.items()}


def _in_graph(bench: Bench, engine: Engine, members: tuple[str, ...], learn: bool) -> dict:
    """A minibatch of a group by itself, without its finiteness being asked for, and in a CUDA graph."""
    settings = settings_of(bench)
    length = sizes(bench)[1] if bench.tiny else PAPER.length
    group = engine.group([name for name in members for _ in settings.members])
    one_by_one = group.unembed is not None  # weights of their own to the end: they don't go through together
    chosen = list(group.members)[: 1 if one_by_one else None]
    positions = positions_of(group)[: len(chosen)]
    cached = group.cache(windows(engine.shape.vocabulary, settings.batch_size, length, 0))
    with torch.no_grad():
        prepared = group._prepare(cached, slice(None))
    into = [torch.zeros_like(position) for position in positions] if learn else None

    @torch.no_grad()
    def run() -> Tensor:
        return group._token_losses(positions, chosen, prepared, into)

    def bare() -> Tensor:
        with AllFinite():
            return run()

    ways = {"ours": run, "without the question": bare}
    if bench.on_card:
        ways["graph"] = graphed(bare)
    return _beside(bench, ways)


def graphed(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """A run of fixed shapes as one launch."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run()

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay


# Beside devinterp, and as a whole ------------------------------------------------------------------------------------


def devinterp(bench: Bench) -> Results:
    """Both tools at equal work (`benchmarks/engine.py`), in turns."""
    if importlib.util.find_spec("devinterp") is None:
        yield "left out", "devinterp is not installed"
        return
    import engine as benchmark

    card = {"length": 257, "probe": 80, "loss": 16, "batch": 16, "draws": 3, "steps": 4}
    tiny = {"length": 9, "probe": 2, "loss": 2, "batch": 2, "draws": 2, "steps": 1}
    for shape in bench.shapes:

        def compare(shape=shape) -> dict:
            work = benchmark.plan(shape, str(bench.device), **(tiny if bench.tiny else card))
            counted, found = cost.of(work), {"ours": [], "devinterp": []}
            for _ in range(1 if bench.tiny else 2):  # the first ones warm up
                found["ours"].append(benchmark.run_ours(work, 1, str(bench.device)))
                bench.wait()
                found["devinterp"].append(benchmark.run_devinterp(work, torch.get_num_threads(), str(bench.device)))
            tokens = counted.token_steps + counted.token_evaluations
            rates = {name: tokens / seconds[-1] for name, seconds in found.items()}
            return {"seconds": found, "tokens_per_second": rates, "ratio": found["devinterp"][-1] / found["ours"][-1]}

        yield attempt(shape, compare)


def whole(bench: Bench) -> Results:
    """A measurement with a worker process of its own, as users run it: profile smoke by sampling and to first order."""
    for name, more in (("sampling", {}), ("first order", {"first_order": True})):

        def measured(more=more) -> dict:
            model = spectrolib.load_model("bundled", device=str(bench.device))
            plan = spectrolib.Plan.from_profile("smoke", model=model, **more)
            if bench.tiny:
                short = {role: getattr(plan, role).take(slice(0, 4)).cut(9) for role in ("sampling", "loss", "probe")}
                plan = replace(plan, components=("l0h0", "l0 mlp"), **short)
            with tempfile.TemporaryDirectory() as folder:
                begin = time.perf_counter()
                result = spectrolib.measure(plan, Path(folder) / "run", workers=1, progress=False)
                seconds = time.perf_counter() - begin
            chi = result["susceptibility"].values
            return {"seconds": seconds, "tokens": len(chi), "finite": bool(np.isfinite(chi).all())}

        yield attempt(name, measured)


RUN = {
    "machine": machine,
    "ceilings": ceilings,
    "agreement": agreement,
    "sampling": sampling,
    "synchronisations": synchronisations,
    "first order": first_order,
    "precision": precisions,
    "gains": gains,
    "devinterp": devinterp,
    "whole": whole,
}
