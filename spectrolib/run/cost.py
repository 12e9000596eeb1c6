r"""What a measurement takes before it is run: operations, bytes moved, memory, disk, and hours on a graphics card.

Operations are counted exactly, from the counts of one token (`operations`); a test compares them with torch's own
counter. Bytes moved and memory are counted by hand from the engine's own steps, and are
good to a factor, not to a percent.

    seconds = Σ over parts  max( operations / peak rate,  bytes moved / bandwidth ) / efficiency

The parts are the steps of the chains, the losses of the probe tokens and of the loss windows at every draw, and the
passes at w*. The efficiency is measured for processors only. **No graphics card was measured for this
edition**: peak rates are those of the makers' data sheets, and hours on a card stand for an assumed efficiency, with a
range. Text, labels and the clustering after it take other machines: `clustering_seconds`.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Literal, NamedTuple

import torch

from ..estimator import CONTROL_DRAWS, CovarianceSums, Estimator
from ..model.components import FULL, Component, names, weight_count
from ..model.engine import CACHE_BYTES, TOKENS_PER_PASS, groups, one_thread
from ..model.gradients import TARGETS
from ..model.loading import load_model
from ..model.loss import TOKEN_BLOCK
from ..model.operations import (
    REDUCED,
    SIDE,
    evaluation_operations,
    gradient_operations,
    layer_operations,
    step_operations,
)
from ..model.shapes import KNOWN, Shape, plain_name
from ..posterior import Settings
from ..text.corpus import BUNDLED
from .profiles import PAPER
from .shards import cut

# Models --------------------------------------------------------------------------------------------------------------


def shape_of(model: str) -> Shape:
    """The shape of a model by its name (`shapes.KNOWN`), of ``bundled``, or of a folder with a config.json.

    Raises:
        ValueError: for another name. Nothing is looked up on the hub.
    """
    for name in (plain_name(model), model.lower().split("/")[-1]):
        if name in KNOWN:
            return KNOWN[name]
    if model == "bundled" or Path(model).is_dir():
        return load_model(model, device="cpu").shape
    raise ValueError(f"no shape is known of model {model!r}: give one of {', '.join(KNOWN)}, 'bundled' or a folder")


def parameters(shape: Shape) -> int:
    """Number of weights, biases and norms included."""
    return weight_count(FULL, shape)


# Cards ---------------------------------------------------------------------------------------------------------------

Precision = Literal["float32", "tf32", "bf16"]
PRECISIONS = ("float32", "tf32", "bf16")


@dataclass(frozen=True)
class GraphicsCard:
    """A graphics card, by its maker's data sheet: dense products, without sparsity."""

    name: str
    rates: Mapping[str, float]
    """Operations a second at each precision."""
    bandwidth: float
    """Bytes a second."""
    memory: float
    """Bytes."""


def _card(name: str, float32: float, tf32: float, bf16: float, bandwidth: float, memory: float) -> GraphicsCard:
    rates = {"float32": float32 * 1e12, "tf32": tf32 * 1e12, "bf16": bf16 * 1e12}
    return GraphicsCard(name, rates, bandwidth * 1e12, memory * 1e9)


CARDS = {
    "h200": _card("H200", 67, 494, 989, 4.8, 141),
    "h100": _card("H100 SXM", 67, 494, 989, 3.35, 80),
    "a100": _card("A100 SXM 80 GB", 19.5, 156, 312, 2.04, 80),
    "l40s": _card("L40S", 91.6, 183, 362, 0.864, 48),
    "4090": _card("RTX 4090", 82.6, 82.6, 165, 1.01, 24),
}

EFFICIENCY = 0.33
"""The share of the limit that hours on a card assume. Not measured."""
EFFICIENCY_RANGE = (0.15, 0.6)
"""Between these two the truth may well lie; processor cores reach 0.4 to 0.65."""


def card_of(name: str) -> GraphicsCard:
    """A card by name, upper or lower case.

    Raises:
        ValueError: if it is not in the table.
    """
    if name.lower() not in CARDS:
        raise ValueError(f"unknown card {name!r}: it must be one of {', '.join(CARDS)}")
    return CARDS[name.lower()]


# The work ------------------------------------------------------------------------------------------------------------


def chains_of(components: Sequence[str], estimator: Estimator) -> tuple[str, ...]:
    """What chains run for: the components, and for the two-chain value the whole model."""
    return (*components, FULL) if estimator == "two_chain" else tuple(components)


@dataclass(frozen=True)
class Work:
    """A measurement by its numbers alone: no weights, no text.

    Raises:
        ValueError: if a number is not positive.
    """

    shape: Shape
    tokens: int
    """Probe tokens, each of which gets a row."""
    settings: Settings = PAPER.settings
    length: int = PAPER.length
    """Tokens of a window; it holds one prediction fewer."""
    loss_tokens: int = PAPER.loss_windows * (PAPER.length - 1)
    """Tokens on which L(w) is taken at every draw."""
    sampling_windows: int = PAPER.sampling_windows
    components: tuple[str, ...] = ()
    """All of them by default."""
    estimator: Estimator = "two_chain"
    blocks: int = 2
    channels: int = 512
    """Of resolved rows; 0 for none."""

    def __post_init__(self) -> None:
        for name in ("tokens", "loss_tokens", "sampling_windows", "blocks"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.length < 2:
            raise ValueError(f"length must be at least 2 (a context and its next token), got {self.length}")
        if not self.components:
            object.__setattr__(self, "components", tuple(names(self.shape)))

    @classmethod
    def of(cls, plan) -> Work:
        """The numbers of a `Plan`."""
        probe, loss = plan.probe, plan.loss
        return cls(
            shape=plan.shape,
            tokens=len(probe) * (probe.length - 1),
            settings=plan.settings,
            length=probe.length,
            loss_tokens=len(loss) * (loss.length - 1),
            sampling_windows=len(plan.sampling),
            components=plan.components,
            estimator=plan.estimator,
            blocks=plan.blocks,
            channels=plan.channels,
        )

    @property
    def sampled(self) -> tuple[str, ...]:
        """What chains run for."""
        return chains_of(self.components, self.estimator)

    @property
    def groups(self) -> list[tuple[str, ...]]:
        """Groups of components that share a prefix. A group and the number of a chain make a task."""
        return groups(self.sampled)

    def operations(self, group: tuple[str, ...]) -> float:
        """Operations of the chains of one group, without those done once at w*: they tell which task is the longest."""
        s, time, total = self.settings, self.length - 1, 0.0
        for name in group:
            total += s.steps * self.batch_tokens * step_operations(name, self.shape, time)
            losses = s.draws * self.members * (self.tokens + self.loss_tokens)
            total += losses * evaluation_operations(name, self.shape, time)
        return total

    @property
    def members(self) -> int:
        """Chains of a team; 1 where chains are not coupled."""
        return len(self.settings.members)

    @property
    def batch_tokens(self) -> int:
        """Tokens that one team puts through a gradient at a step."""
        return sum(map(self.settings.drives, self.settings.members)) * self.settings.batch_size * (self.length - 1)


ACTIVITIES = ("steps", "probe losses", "loss windows", "at w*")
KINDS = ("heads", "MLPs", "embed", "unembed", FULL)


class Part(NamedTuple):
    """One activity of one kind of component."""

    activity: str
    kind: str
    operations: float
    """Floating-point operations of matrix products."""
    numbers: float
    """Numbers read and written in the device's memory by the operations between them."""
    logits: float
    """How many of these are logits, which stay in a processor's cache, and would in a fused kernel."""


def _kind(component: Component) -> str:
    return {"head": "heads", "group": "heads", "mlp": "MLPs"}.get(component.kind, component.kind)


def breakdown(work: Work, shards: int = 1) -> list[Part]:
    """What each activity costs for each kind of component.

    Args:
        shards: parts of the probe text that are tasks of their own. Each repeats all but the losses of its own tokens.
    """
    s, shape, time = work.settings, work.shape, work.length - 1
    found: dict[tuple[str, str], list[float]] = {}

    def add(activity: str, kind: str, operations: float, numbers: float, logits: float) -> None:
        held = found.setdefault((activity, kind), [0.0, 0.0, 0.0])
        for i, value in enumerate((operations, numbers, logits)):
            held[i] += s.chains * value

    def losses(activity: str, component: Component, tokens: float) -> None:
        logits = 4 * shape.vocabulary * tokens  # written, read and written as powers, read for their sum
        moved = _layers_after(component, shape) * _layer_numbers(shape) * tokens
        add(
            activity,
            _kind(component),
            tokens * evaluation_operations(component, shape, time),
            moved + logits,
            logits,
        )

    for component in map(Component.of, work.sampled):
        tokens = shards * s.steps * work.batch_tokens
        logits = 5 * shape.vocabulary * tokens  # the gradient reads them once more
        moved = _layers_after(component, shape) * _step_numbers(shape, time) * tokens
        own = _state_numbers(work, component) * shards * s.steps * work.members
        operations = tokens * step_operations(component, shape, time)
        add("steps", _kind(component), operations, moved + logits + own, logits)
        losses("probe losses", component, s.draws * work.members * work.tokens)
        losses("loss windows", component, shards * s.draws * work.members * work.loss_tokens)
    for group in work.groups:
        first = Component.of(group[0])
        for tokens in (work.tokens, shards * work.loss_tokens):  # the losses at w* are subtracted
            losses_at_start = tokens * evaluation_operations("embed", shape, time)
            moved, logits = shape.layers * _layer_numbers(shape) * tokens, 4 * shape.vocabulary * tokens
            add("at w*", _kind(first), losses_at_start, moved + logits, logits)
        layers = _prefix_layers(first, shape)
        tokens = _prefix_tokens(work, first, shards)
        operations, moved = layers * layer_operations(shape, time), layers * _layer_numbers(shape)
        add("at w*", _kind(first), tokens * operations, tokens * moved, 0.0)
    return [Part(*key, *values) for key, values in found.items()]


def _layers_after(component: Component, shape: Shape) -> float:
    """Layers that a loss of the component runs through; its own counts by half."""
    if component.layer is None:
        return 0.0 if component.kind == "unembed" else float(shape.layers)
    return shape.layers - 1 - component.layer + 0.5


def _layer_numbers(shape: Shape) -> float:
    """Numbers that a frozen layer reads and writes for one token, operation by operation (`layers.FrozenLayer`)."""
    return 21 * shape.width + 4 * shape.mlp * len(shape.where.up)


def _step_numbers(shape: Shape, time: int) -> float:
    """The same with the way back, twice as much again; attention is then written out."""
    return 3 * _layer_numbers(shape) + 10 * shape.heads * time


def _state_numbers(work: Work, component: Component) -> float:
    """Numbers that the update of one chain reads and writes (`posterior.Chain.step`)."""
    return (20 if work.settings.preconditioner != "none" else 10) * weight_count(component, work.shape)


def _prefix_layers(component: Component, shape: Shape) -> int:
    """Layers whose activations at w* the group of a component needs."""
    if component.layer is None:
        return shape.layers if component.kind == "unembed" else 0
    return component.layer + 1


def _held(work: Work, component: Component, tokens: float) -> float:
    """Bytes of the activations at w* that the group of a component keeps of so many tokens; 0 if too many to keep."""
    if component.kind in ("embed", "full"):
        return 0.0
    size = 4.0 * tokens * work.shape.width * (1 if component.layer is None else 3)
    return size if size <= CACHE_BYTES else 0.0


def _prefix_tokens(work: Work, component: Component, shards: int = 1) -> float:
    """Tokens whose prefix the tasks of a chain of its group compute: once where it can be kept, else at every use."""
    s, time = work.settings, work.length - 1

    def at_draws(tokens: float) -> float:
        return tokens * (1 if _held(work, component, tokens) else s.draws)

    total = shards * at_draws(work.tokens / shards)
    repeated = at_draws(work.loss_tokens)
    sampling = work.sampling_windows * time
    if s.needs_gradient or not _held(work, component, sampling):
        repeated += sampling if _held(work, component, sampling) else s.steps * s.batch_size * time * s.needs_gradient
    else:
        repeated += sampling
    return total + shards * repeated


def operations(work: Work, shards: int = 1) -> float:
    """All matrix products, in floating-point operations."""
    return sum(part.operations for part in breakdown(work, shards))


@dataclass(frozen=True)
class Cost:
    """What a plan takes, counted."""

    tasks: int
    steps: int
    """Steps of single components."""
    token_steps: float
    """Tokens that go through a gradient step, or, to first order, that get a gradient of their own."""
    token_evaluations: float
    """Tokens whose loss is evaluated at a draw."""
    operations: float
    """Floating-point operations of all matrix products, those at w* included."""

    def seconds(self, workers: int, *, efficiency: float = 0.4) -> float:
        """A guess of the time on this machine (`processor_seconds`)."""
        return processor_seconds(self.operations, workers, efficiency=efficiency)


def of(plan) -> Cost:
    """What a `Plan` takes, counted: each shard of its probe text repeats its chains."""
    work, shards = Work.of(plan), len(plan.stretches())
    if plan.first_order:
        share = len(plan.components) / len(names(work.shape))
        operations_each = gradient_operations(work.shape, work.length - 1, plan.width, share=share)
        return Cost(len(plan.tasks), 0, float(work.tokens), 0.0, work.tokens * operations_each)
    s, teams = work.settings, work.settings.chains * len(work.sampled)
    draw_tokens = work.members * (work.tokens + shards * work.loss_tokens)
    return Cost(
        tasks=len(plan.tasks),
        steps=shards * teams * s.steps * work.members,
        token_steps=float(shards * teams * s.steps * work.batch_tokens),
        token_evaluations=float(teams * s.draws * draw_tokens),
        operations=operations(work, shards),
    )


def processor_seconds(operations: float, workers: int, *, efficiency: float = 0.4) -> float:
    """A guess of the time on this machine: its matrix-product rate, measured now, times ``efficiency``."""
    return operations / (workers * efficiency * matmul_rate())


@functools.cache
def matmul_rate(size: int = 512, repeats: int = 8) -> float:
    """Operations a second of a float32 matrix product on one thread of this machine's processor, measured."""
    a, b = torch.ones(size, size), torch.ones(size, size)
    times = []
    with one_thread():
        for _ in range(repeats):
            begin = perf_counter()
            a @ b
            times.append(perf_counter() - begin)
    return 2 * size**3 / min(times)


# Time ----------------------------------------------------------------------------------------------------------------

BYTES = {"float32": 4, "tf32": 4, "bf16": 2}


class CardHours(NamedTuple):
    """Hours on one card, for an assumed efficiency."""

    hours: float
    low: float
    """At the better end of `EFFICIENCY_RANGE`."""
    high: float
    """At the worse end."""
    bound: dict[str, str]
    """What limits each activity: compute or memory."""
    share: dict[str, float]
    """Of the hours, by activity."""


def hours(
    work: Work,
    card: GraphicsCard,
    precision: Precision = "float32",
    efficiency: float = EFFICIENCY,
    shards: int = 1,
) -> CardHours:
    """Hours on one card: the larger of compute and memory for each activity, over an efficiency that is assumed.

    The engine computes in float32. The other precisions say what the same job would take if its products ran in them.

    Args:
        shards: as for `breakdown`.

    Raises:
        ValueError: for an unknown precision, or an efficiency that is no share.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"unknown precision {precision!r}: it must be one of {', '.join(PRECISIONS)}")
    if not 0 < efficiency <= 1:
        raise ValueError(f"efficiency must be a share above 0 and up to 1, got {efficiency}")
    spent, bound = {}, {}
    for activity in ACTIVITIES:
        mine = [part for part in breakdown(work, shards) if part.activity == activity]
        compute = sum(part.operations for part in mine) / card.rates[precision]
        memory = sum(part.numbers for part in mine) * BYTES[precision] / card.bandwidth
        spent[activity], bound[activity] = max(compute, memory), "compute" if compute >= memory else "memory"
    ideal = sum(spent.values()) / 3600
    low, high = EFFICIENCY_RANGE
    return CardHours(
        ideal / efficiency, ideal / high, ideal / low, bound, {k: v / 3600 / ideal for k, v in spent.items()}
    )


def hours_of(plan, card: GraphicsCard, efficiency: float = EFFICIENCY) -> CardHours:
    """Hours that a `Plan` takes on one card. To first order by its operations alone: bytes moved are not counted."""
    if not plan.first_order:
        return hours(Work.of(plan), card, efficiency=efficiency, shards=len(plan.stretches()))
    ideal, (low, high) = of(plan).operations / card.rates["float32"] / 3600, EFFICIENCY_RANGE
    return CardHours(ideal / efficiency, ideal / high, ideal / low, {"gradients": "compute"}, {"gradients": 1.0})


# Memory and disk -----------------------------------------------------------------------------------------------------

SUM_BYTES = 8 * (len(CovarianceSums.VECTORS) + 1)
"""Bytes of the running sums of one token: vectors in float64, two of them for the controls."""


Device = Literal["cpu", "cuda"]
PROCESS_BYTES = {"cpu": 0.25e9, "cuda": 0.0}
"""What Python and torch take in the memory that is counted; measured on a processor."""


def memory(work: Work, device: Device = "cuda", tokens_per_pass: int | None = None) -> dict[str, float]:
    """Bytes that one worker needs at most, for its largest task; counted by hand, good to a factor of two.

    Model: the weights, and the copies in which the engine folds norms and centres the unembedding. Chains: positions,
    starts, noise, gradients, squares. Prefixes: what is kept of the windows at w*. Sums and draws: what grows with the
    number of probe tokens. Activations: what one pass keeps for its way back, and a block of logits. On a processor
    also the process: Python and torch themselves.

    Args:
        tokens_per_pass: tokens of all streams in one pass of the engine; its own choice by default.
    """
    limit, process = tokens_per_pass or TOKENS_PER_PASS[device], PROCESS_BYTES[device]
    largest = max((_group_memory(work, group, limit) for group in work.groups), key=lambda found: sum(found.values()))
    largest["activations"] += _logits(work.shape, device)
    return largest | ({"process": process} if process else {})


def _logits(shape: Shape, device: Device) -> float:
    """Bytes of the logits held at once, where the unembedding moves too (`loss.sweep`)."""
    return 4.0 * TOKEN_BLOCK * shape.vocabulary * (1 if device == "cpu" else 4)


def need(plan) -> dict[str, float]:
    """Bytes that a worker needs for the largest task of a plan (`memory`)."""
    if plan.first_order:
        return _gradient_memory(plan)
    device = _device(plan)
    passes = plan.tokens_per_pass or TOKENS_PER_PASS[device]
    return memory(_largest(Work.of(plan), passes, plan.shards), device, passes)


def _gradient_memory(plan) -> dict[str, float]:
    """Bytes of a worker to first order: the random matrices above all."""
    shape, time, rows = plan.shape, plan.probe.length - 1, SIDE * REDUCED
    held = 2 * plan.width * sum(min(weight_count(name, shape), 3 * rows) for name in plan.components)
    numbers = 14 * shape.width + 4 * shape.mlp + 3 * shape.heads * time
    return {
        "model": 4.0 * 2 * parameters(shape),
        "random matrices": 4.0 * held,
        "the way back": 4.0 * TARGETS * (time * numbers * shape.layers / 4 + 2 * shape.vocabulary),
        "process": PROCESS_BYTES["cpu"],
    }


def _device(plan) -> Device:
    return "cpu" if plan.model.device.type == "cpu" else "cuda"


def _largest(work: Work, tokens_per_pass: int, shards: int) -> Work:
    """The work with the probe tokens of the largest shard alone."""
    time = work.length - 1
    windows = math.ceil(work.tokens / time)
    stretches = cut(0, windows, windows, max(1, tokens_per_pass // time), shards)
    return replace(work, tokens=min(work.tokens, time * max(end - first for first, end in stretches)))


def _group_memory(work: Work, group: tuple[str, ...], tokens_per_pass: int) -> dict[str, float]:
    s, shape, time, width = work.settings, work.shape, work.length - 1, work.shape.width
    driven = sum(map(s.drives, s.members))
    folded = shape.layers * (3 * width**2 + width * shape.mlp) if shape.parallel else 0
    copies = folded + shape.vocabulary * width
    weights = sum(_weight_count(component, shape) for component in group)
    state = 3 * work.members + 2 * driven + (work.members if s.preconditioner != "none" else 0)
    held_draws = min(CONTROL_DRAWS, work.members * math.ceil(s.draws / work.blocks))
    windows = (work.tokens, work.loss_tokens, work.sampling_windows * time)
    return {
        "model": 4.0 * (parameters(shape) + copies),
        "chains": 4.0 * state * weights,
        "prefixes": sum(_held(work, Component.of(group[0]), count) for count in windows),
        "sums": float((SUM_BYTES * work.blocks + _channel_bytes(work)) * work.tokens * len(group)),
        "draws": float(work.tokens * len(group) * (28 * work.members + 4 * held_draws)),
        "activations": 4.0 * max(_pass_numbers(work, group, tokens_per_pass, learn) for learn in (True, False)),
    }


def _pass_numbers(work: Work, group: tuple[str, ...], tokens_per_pass: int, learn: bool) -> float:
    """Numbers of the largest pass: of a step, or of losses at a draw. The components of a layer share windows, and each
    has an input and a rest of its own (`engine.Group._prepare`); members are streams of tokens through what follows."""
    shape, time = work.shape, work.length - 1
    tokens = work.settings.batch_size * time if learn else max(work.tokens, work.loss_tokens)
    tokens, first = min(tokens, tokens_per_pass), Component.of(group[0])
    prepared = 0 if first.kind in ("embed", "full") else (2 * len(group) + 3) * shape.width
    members = sum(map(work.settings.drives, work.settings.members)) if learn else work.members
    alone = first.kind in ("unembed", "full") or (
        shape.tied and first.kind == "embed"
    )  # weights of its own, to the end
    streams = min(tokens_per_pass, tokens * (1 if alone else len(group) * members))
    each = _kept_numbers(first, shape, time) if learn else 12 * shape.width + 4 * shape.mlp
    return tokens * prepared + streams * each


_weight_count = functools.cache(weight_count)


def _kept_numbers(component: Component, shape: Shape, time: int) -> float:
    """Numbers that a pass keeps of one token for its way back (`layers.FrozenLayer`; autograd for the whole model, and
    in other families)."""
    scores = shape.heads * time
    layer = {"unembed": shape.layers, "embed": 0, "full": 0}.get(component.kind, component.layer)
    by_autograd = component.kind == "full" or not shape.parallel
    gated = len(shape.where.up)
    kept = 14 * shape.width + 2 * gated * shape.mlp if by_autograd else 5 * shape.width + shape.mlp + scores
    return (shape.layers - layer) * kept + 12 * shape.width + 4 * shape.mlp + 4 * scores


def _channels_kept(work: Work) -> int:
    """Channels of one component in each half: as many as asked for, or as there are draws."""
    draws = work.settings.draws * work.members * math.ceil(work.settings.chains / 2)
    draws //= 2 if work.settings.tilt else 1
    return min(max(1, work.channels // len(work.components)), draws) if work.channels else 0


def _channel_bytes(work: Work) -> float:
    """Bytes of one token's channels on one chain of one component, float32, and their sum."""
    return 8 + 4 * _channels_kept(work) if work.channels else 0


def disk(work: Work) -> dict[str, float]:
    """Bytes on disk: the partial sums of all tasks, the labelled result (before compression), and, for comparison, the
    float32 losses of every draw, which `devinterp` keeps."""
    chains, halves = work.settings.chains, 2 if work.settings.chains > 1 else 0
    entry = 5 * 8 + 2 * 4 + 2 * halves * work.blocks * 4  # five tables in float64, two controls, half estimates
    return {
        "partial sums": float(
            (SUM_BYTES * work.blocks + _channel_bytes(work)) * work.tokens * len(work.sampled) * chains
        ),
        "result": float((entry + 2 * min(2, chains) * _channels_kept(work)) * len(work.components) * work.tokens),
        "losses of every draw": 4.0 * work.tokens * len(work.sampled) * chains * work.settings.draws * work.members,
    }


class Fit(NamedTuple):
    """How a measurement fits into a given amount of memory."""

    tokens_per_pass: int
    """Tokens in one pass of the engine, at most its own choice."""
    parts: int
    """Shards of the probe text, each of which repeats the chains."""


LEAST_PASS = 8192
"""Passes are shortened down to so many tokens, then the probe text is cut: shorter passes leave a card idle."""


def fit(work: Work, limit: float, device: Device = "cuda", tokens_per_pass: int | None = None) -> Fit | None:
    """Shorter passes, and then shards of the probe text, so that a worker needs no more than ``limit`` bytes.

    None where neither helps, because model and chains alone need more.

    Args:
        tokens_per_pass: what a pass must have, by default what fits.
    """
    passes, time = tokens_per_pass or TOKENS_PER_PASS[device], work.length - 1
    windows = math.ceil(work.tokens / time)

    def fits(count: int) -> bool:
        return sum(memory(_largest(work, passes, count), device, passes).values()) <= limit

    for shards, least in ((1, LEAST_PASS), (windows, time)):
        while not fits(shards) and passes > least and tokens_per_pass is None:
            passes = max(passes // 2, time)
    if not fits(windows):
        return None
    count = 1
    while not fits(count):
        count += max(1, count // 8)
    return Fit(passes, min(count, windows))


def within(plan, limit: float, keep_passes: bool = False):
    """The plan in so many shards, and passes so short, that a worker needs no more than ``limit`` bytes.

    Args:
        keep_passes: whether passes must stay as they are, for a run that has begun.

    Raises:
        ValueError: if that cannot be done.
    """
    work, device = Work.of(plan), _device(plan)
    own = TOKENS_PER_PASS[device]
    passes = plan.tokens_per_pass or (own if keep_passes else None)
    found = fit(work, limit, device, passes)
    if found is None:
        shortest = passes or work.length - 1
        least = memory(_largest(work, shortest, work.tokens), device, shortest)
        rather = "" if work.members == 1 else ", or chains on their own instead of teams (--plain)"
        raise ValueError(
            f"a worker needs at least {bytes_text(sum(least.values()))} of memory, more than {bytes_text(limit)}: "
            f"{', '.join(f'{name} {bytes_text(part)}' for name, part in least.items())}. Give it more{rather}"
        )
    shorter = plan.tokens_per_pass or (found.tokens_per_pass if found.tokens_per_pass < own else None)
    return replace(plan, shards=max(plan.shards, found.parts), tokens_per_pass=shorter)


# Graph and clusters --------------------------------------------------------------------------------------------------


@functools.cache
def clustering_timings() -> dict[str, dict[int, float]]:
    """Seconds by number of tokens, measured on two cores: ``graph`` (k = 45 in 32 dimensions, CPU seconds) and
    ``clusters`` (from vectors to labels, mutual graph)."""
    read = json.loads((BUNDLED / "clustering_timings.json").read_text())
    return {name: {int(tokens): seconds for tokens, seconds in read[name].items()} for name in ("graph", "clusters")}


def graph_seconds(tokens: int, dimensions: int = 32) -> float:
    """CPU seconds of the graph of nearest neighbours; beyond the last measured size by the law of an inverted file.

    Between measured sizes a power law joins them. Distances cost as their number of dimensions. An inverted file of
    4 √n cells, of which a constant number is searched, looks at about √n candidates for each vector: so n^1.5 in all.
    """
    return _power_law(clustering_timings()["graph"], tokens, beyond=1.5) * dimensions / 32


def peel_seconds(tokens: int) -> float:
    """Seconds from graph to labels: what was measured in all, less the graph; a power law in between and beyond."""
    rest = {n: seconds - graph_seconds(n) for n, seconds in clustering_timings()["clusters"].items()}
    return _power_law(rest, tokens)


def clustering_seconds(tokens: int, dimensions: int = 32) -> float:
    """From vectors to labels on two cores. Measured up to 500 000 tokens in 32 dimensions; the rest is extrapolated."""
    return graph_seconds(tokens, dimensions) + peel_seconds(tokens)


def _power_law(known: Mapping[int, float], n: float, beyond: float | None = None) -> float:
    """Interpolated on logarithms; outside, the nearest slope, or ``beyond`` above the largest."""
    sizes = sorted(known)
    i = min(max(sum(size < n for size in sizes) - 1, 0), len(sizes) - 2)
    low, high = sizes[i], sizes[i + 1]
    if n > sizes[-1] and beyond is not None:
        return known[high] * (n / high) ** beyond
    slope = math.log(known[high] / known[low]) / math.log(high / low)
    return known[low] * (n / low) ** slope


# In words ------------------------------------------------------------------------------------------------------------

_UNITS = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9}


def bytes_text(count: float) -> str:
    """Bytes in words."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count / 1e3:.3g} kB"


_BYTES = {"": 1, "b": 1, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}


def bytes_of(text: str) -> float:
    """A size of memory as people write it: 4GB, 512 MB, 1.5g, 8GiB.

    Raises:
        ValueError: if it is none.
    """
    match = re.fullmatch(r"([0-9]+\.?[0-9]*)\s*([kmgtb]?)(i?b)?", text.strip().lower())
    if not match or not float(match[1]):
        raise ValueError(f"{text!r} is no size of memory: write it like 4GB, 512MB or 8GiB")
    unit = 1024 ** "bkmgt".index(match[2] or "b") if match[3] == "ib" else _BYTES[match[2]]
    return float(match[1]) * unit


def count_of(text: str) -> int:
    """A count as people write it: 20000, 20_000, 20k, 4.25M.

    Raises:
        ValueError: if it is no positive whole number.
    """
    match = re.fullmatch(r"([0-9][0-9_,]*\.?[0-9]*(?:e[0-9]+)?)\s*([kmgb]?)", text.strip().lower())
    value = float(match[1].replace(",", "").replace("_", "")) * _UNITS[match[2]] if match else math.nan
    if not (value >= 1 and math.isfinite(value) and abs(value - round(value)) < 1e-6 * value):
        raise ValueError(f"{text!r} is no count: write it like 20000, 20k or 4.25M")
    return round(value)


def cost_summary(
    work: Work,
    card: GraphicsCard,
    precision: Precision = "float32",
    efficiency: float = EFFICIENCY,
    model: str = "",
    cores: int = 1,
) -> dict:
    """Everything that `spectro plan` prints, as JSON-able values; ``cores`` are those of this machine to use."""
    found, s = breakdown(work), work.settings
    estimate, need, fitting = hours(work, card, precision, efficiency), memory(work), fit(work, 0.9 * card.memory)
    total = sum(part.operations for part in found)
    return {
        "model": model,
        "parameters": parameters(work.shape),
        "components": len(work.components),
        "tokens": work.tokens,
        "settings": {
            "chains": s.chains,
            "members": work.members,
            "draws": s.draws,
            "steps_between_draws": s.steps_between_draws,
            "steps": s.steps,
            "batch_size": s.batch_size,
            "length": work.length,
            "loss_tokens": work.loss_tokens,
        },
        "tasks": len(work.groups) * s.chains,
        "operations": total,
        "operations_by_activity": _sums(found, "activity", ACTIVITIES),
        "operations_by_kind": _sums(found, "kind", KINDS),
        "bytes_moved": sum(part.numbers for part in found) * BYTES[precision],
        "card": card.name,
        "precision": precision,
        "efficiency": efficiency,
        "hours": {"assumed": estimate.hours, "low": estimate.low, "high": estimate.high, "measured": False},
        "processor": {"cores": cores, "seconds": processor_seconds(total, cores)},
        "bound": estimate.bound,
        "share": estimate.share,
        "memory": need,
        "card_memory": card.memory,
        "fit": None if fitting is None else fitting._asdict(),
        "disk": disk(work),
        "clustering_seconds": clustering_seconds(work.tokens, len(work.components)),
    }


def _sums(found: Iterable[Part], by: str, order: tuple[str, ...]) -> dict[str, float]:
    return {key: sum(part.operations for part in found if getattr(part, by) == key) for key in order}
