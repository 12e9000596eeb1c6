"""The plan of a measurement: everything that it depends on, the tasks that it falls into, and what it costs."""

from __future__ import annotations

import functools
import math
import platform
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from jaxtyping import Int
from numpy import ndarray

from .components import FULL, check, layer_of, names
from .corpus import Document, Windows, bundled_windows, hub_documents, tokenizer_hash, windows_from_documents
from .engine import TOKENS_PER_PASS, groups
from .estimator import ESTIMATORS, Estimator
from .models import LanguageModel, load_model
from .posterior import Settings
from .profiles import Profile, get
from .shapes import Shape

FORMAT = 2
"""Version of the run folder: raised when the numbers that a plan leads to change."""

Stretch = tuple[int, int]
"""Consecutive windows: the first, and one past the last."""


@dataclass(frozen=True)
class Plan:
    """Everything that a measurement depends on.

    Raises:
        ValueError: for an unknown component or estimator, windows of a wrong shape, or token ids beyond the vocabulary.
    """

    model: LanguageModel
    sampling: Windows
    """Windows that minibatches are drawn from."""
    loss: Windows
    """Fixed windows on which L(w) and L(w*) are both taken."""
    probe: Windows
    """Fixed windows whose every token but the first gets a susceptibility."""
    settings: Settings
    components: tuple[str, ...] = ()
    """Components to measure; all of them by default. The unrestricted chain is always added."""
    estimator: Estimator = "two_chain"
    blocks: int = 2
    """Consecutive blocks into which the draws of a chain are summed: two give split halves."""
    shards: int = 1
    """Parts of the probe text, at most, that are tasks of their own, so that a worker needs the memory of one. Each
    repeats the chains. The result is the same to the last bit: this is no part of what identifies the plan."""
    tokens_per_pass: int | None = None
    """Tokens in one pass of the engine, by default what suits the device. The last bits depend on it."""

    def __post_init__(self) -> None:
        shape = self.shape
        if not self.components:
            object.__setattr__(self, "components", tuple(names(shape)))
        for component in self.components:
            check(component, shape)
        if FULL in self.components or len(set(self.components)) < len(self.components):
            raise ValueError("components must be named once each, without 'full': the unrestricted chain is always run")
        if self.estimator not in ESTIMATORS:
            raise ValueError(f"unknown estimator {self.estimator!r}: it must be one of {ESTIMATORS}")
        if not 1 <= self.blocks <= self.settings.draws:
            raise ValueError(f"blocks must lie between 1 and the {self.settings.draws} draws, got {self.blocks}")
        if self.shards < 1:
            raise ValueError(f"shards must be at least 1, got {self.shards}")
        if self.tokens_per_pass is not None and self.tokens_per_pass < 1:
            raise ValueError(f"tokens_per_pass must be at least 1, got {self.tokens_per_pass}")
        own = None if self.model.tokens is None else tokenizer_hash(self.model.tokens)
        for role in ("sampling", "loss", "probe"):
            windows = getattr(self, role)
            highest = int(windows.ids.max())
            if highest >= shape.vocabulary:
                raise ValueError(
                    f"the {role} windows hold token id {highest}, beyond the model's vocabulary of {shape.vocabulary}: "
                    "they were made with another tokenizer"
                )
            if shape.longest and windows.length - 1 > shape.longest:
                raise ValueError(
                    f"the {role} windows hold {windows.length} tokens, and the model reads {shape.longest} at once: "
                    f"cut windows of at most {shape.longest + 1}"
                )
            if own and windows.provenance.get("tokenizer") not in {None, own}:
                raise ValueError(
                    f"the {role} windows were made with another tokenizer than that of model {self.model.name!r}: "
                    "cut windows from text with the model's own"
                )

    @property
    def shape(self) -> Shape:
        return self.model.shape

    @classmethod
    def from_profile(
        cls, profile: str | Profile, *, model: LanguageModel | None = None, seed: int = 0, **changes
    ) -> Plan:
        """The plan of a profile; ``changes`` replace fields of the plan (``settings``, ``components``, ...)."""
        profile = get(profile) if isinstance(profile, str) else profile
        model = model or load_model(profile.model)
        windows = {} if {"sampling", "loss", "probe"} <= changes.keys() else profile_windows(profile, model)
        fields = windows | {"settings": replace(profile.settings, seed=seed)} | changes
        return cls(model=model, **fields)

    @property
    def whole(self) -> list[Task]:
        """A task for each group and chain, all of the probe text in one: the longest first, so that workers finish
        together."""
        together = sorted(groups([*self.components, FULL]), key=lambda group: -_operations(self, group))
        return [Task(group, chain) for group in together for chain in range(self.settings.chains)]

    @property
    def tasks(self) -> list[Task]:
        """All tasks, one for each shard, the longest first."""
        return self.left({})

    def left(self, finished: Mapping[str, Sequence[Stretch | None]]) -> list[Task]:
        """The tasks that are left where some stretches of the probe windows are done, all of them where it says None.

        Args:
            finished: by the name of the whole task.
        """
        found = []
        for task in self.whole:
            done, reached = finished.get(task.name, ()), 0
            known = [] if None in done else [*sorted(done), (len(self.probe), len(self.probe))]
            for first, end in known:
                if first > reached:
                    found += [self._part(task, stretch) for stretch in self.stretches(reached, first)]
                reached = end
        return found

    def _part(self, task: Task, stretch: Stretch) -> Task:
        return task if stretch == (0, len(self.probe)) else replace(task, windows=stretch)

    def stretches(self, first: int = 0, end: int | None = None) -> list[Stretch]:
        """How the probe windows from ``first`` to ``end`` are cut into shards."""
        return cut(first, len(self.probe) if end is None else end, len(self.probe), self.rows, self.shards)

    @property
    def rows(self) -> int:
        """Probe windows in one pass of the engine."""
        tokens = self.tokens_per_pass or TOKENS_PER_PASS.get(self.model.device.type, TOKENS_PER_PASS["cuda"])
        return max(1, tokens // (self.probe.length - 1))

    def manifest(self) -> dict:
        """What identifies the plan, as JSON-able values."""
        from . import __version__

        passes = {} if self.tokens_per_pass is None else {"tokens_per_pass": self.tokens_per_pass}
        return {
            "format": FORMAT,
            "model": {"name": self.model.name, "revision": self.model.revision, "hash": self.model.hash},
            "windows": {
                role: {
                    "shape": list(windows.ids.shape),
                    "hash": windows.hash,
                    "source": windows.provenance.get("source"),
                }
                for role, windows in (("sampling", self.sampling), ("loss", self.loss), ("probe", self.probe))
            },
            "settings": {k: v.item() if isinstance(v, np.generic) else v for k, v in asdict(self.settings).items()},
            "components": list(self.components),
            "estimator": self.estimator,
            "blocks": self.blocks,
            "versions": {"spectrolib": __version__, "torch": torch.__version__, "numpy": np.__version__},
            "machine": {"processor": platform.machine(), "device": self.model.device.type} | passes,
        }

    def cost(self) -> Cost:
        """What the plan takes, counted."""
        return _cost(self)


def profile_windows(profile: Profile, model: LanguageModel) -> dict[str, Windows]:
    """The sampling, loss and probe windows of a profile, disjoint."""
    if profile.source == "bundled":
        pool = bundled_windows("sampling").cut(profile.length)
        probe = bundled_windows("heldout").cut(profile.length)
        wanted = profile.sampling_windows + profile.loss_windows
        if wanted > len(pool) or profile.probe_windows > len(probe):
            raise ValueError(f"profile {profile.name!r} asks for more windows than the bundled ones")
        held = pool.take(_spread(len(pool), profile.loss_windows))
        rest = pool.take(np.setdiff1d(np.arange(len(pool)), _spread(len(pool), profile.loss_windows)))
        return {
            "sampling": rest.take(_spread(len(rest), profile.sampling_windows)),
            "loss": held,
            "probe": probe.take(_spread(len(probe), profile.probe_windows)),
        }
    total = profile.sampling_windows + profile.loss_windows + profile.probe_windows
    return text_windows(profile, model, hub_documents(profile.source, limit=2 * total), profile.source)


def text_windows(
    profile: Profile, model: LanguageModel, documents: Iterable[Document], source: str
) -> dict[str, Windows]:
    """Sampling, loss and probe windows of a profile's sizes, disjoint, cut from any documents.

    Raises:
        ValueError: if the model has no tokenizer, or the documents hold too little text.
    """
    sizes = {"sampling": profile.sampling_windows, "loss": profile.loss_windows, "probe": profile.probe_windows}
    total = sum(sizes.values())
    windows = _cut_text(profile, model, documents, total, source)
    order = np.random.default_rng(0).permutation(total)
    parts = np.split(order, np.cumsum(list(sizes.values()))[:-1])
    return {role: windows.take(np.sort(part)) for role, part in zip(sizes, parts, strict=True)}


def probe_windows(profile: Profile, model: LanguageModel, documents: Iterable[Document], source: str) -> Windows:
    """Probe windows alone, of the profile's length and number, cut from any documents.

    Raises:
        ValueError: as `text_windows`.
    """
    return _cut_text(profile, model, documents, profile.probe_windows, source)


def _cut_text(profile: Profile, model: LanguageModel, documents: Iterable[Document], count: int, source: str):
    if model.tokens is None:
        raise ValueError(f"model {model.name!r} has no tokenizer to cut text into windows with")
    return windows_from_documents(documents, model.tokens, length=profile.length, count=count, seed=0, source=source)


def _spread(available: int, wanted: int) -> Int[ndarray, " wanted"]:
    """Indices spread evenly over what is available, so that every domain is met."""
    return np.arange(wanted) * available // wanted


@dataclass(frozen=True)
class Task:
    """Components that share a prefix, the number of a chain, and a stretch of the probe windows."""

    components: tuple[str, ...]
    chain: int
    windows: Stretch | None = None
    """The first and one past the last; None for all."""

    @property
    def name(self) -> str:
        """A name fit for a file; it says which task of its plan this is."""
        layer = layer_of(self.components[0])
        name = f"{self.components[0] if layer is None else f'layer{layer}'}.chain{self.chain}"
        return name if self.windows is None else f"{name}.windows{self.windows[0]}-{self.windows[1]}"


def cut(first: int, end: int, windows: int, rows: int, shards: int) -> list[Stretch]:
    """Stretches from ``first`` to ``end``, none longer than where all ``windows`` are cut into ``shards`` equal ones.

    They begin where a pass of the engine begins, and what is left of a pass at the end joins the last one. So every
    window goes through the engine in the same company however the text is cut, and its losses are the same to the last
    bit: those of a matrix product depend on its size.

    Args:
        rows: windows in a pass.
    """
    passes = max(1, (end - first) // rows)
    longest = math.ceil(max(1, windows // rows) / shards)
    starts = [first + rows * done for done in range(0, passes, longest)]
    return list(zip(starts, [*starts[1:], end], strict=True))


# What it costs -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """What a plan takes, counted."""

    tasks: int
    steps: int
    """Steps of single components."""
    token_steps: float
    """Tokens that go through a gradient step."""
    token_evaluations: float
    """Tokens whose loss is evaluated at a draw."""
    operations: float
    """Floating-point operations of the matrix products that these need."""

    def seconds(self, workers: int, *, efficiency: float = 0.4) -> float:
        """A guess of the time on this machine: its matrix-product rate, measured now, times ``efficiency``."""
        return self.operations / (workers * efficiency * matmul_rate())


def _cost(plan: Plan) -> Cost:
    s, sampled, shards = plan.settings, [*plan.components, FULL], len(plan.stretches())
    teams = s.chains * len(sampled)
    return Cost(
        tasks=len(plan.tasks),
        steps=shards * teams * s.steps * len(s.members),
        token_steps=float(shards * teams * s.steps * _batch_tokens(plan)),
        token_evaluations=float(teams * s.draws * _draw_tokens(plan, shards)),
        operations=s.chains * _operations(plan, sampled, shards),
    )


def _batch_tokens(plan: Plan) -> int:
    """Tokens that a team puts through a gradient at a step."""
    s = plan.settings
    return sum(map(s.drives, s.members)) * s.batch_size * (plan.sampling.length - 1)


def _draw_tokens(plan: Plan, shards: int) -> int:
    """Tokens whose loss a team needs at a draw: each shard takes L(w) for itself."""
    probe, loss = (len(windows) * (windows.length - 1) for windows in (plan.probe, plan.loss))
    return len(plan.settings.members) * (probe + shards * loss)


def _operations(plan: Plan, components: Iterable[str], shards: int = 1) -> float:
    """Operations of one team of each component; each shard of the probe text repeats its steps."""
    s, shape = plan.settings, plan.shape
    return sum(
        shards * s.steps * _batch_tokens(plan) * step_operations(name, shape, plan.sampling.length - 1)
        + s.draws * _draw_tokens(plan, shards) * evaluation_operations(name, shape, plan.probe.length - 1)
        for name in components
    )


def _attention_operations(shape: Shape, time: int, groups: int) -> float:
    """Operations of so many groups of heads for one token: their projections, causal attention over half the window."""
    projections = 2 * shape.width * shape.head_dim * (2 * shape.shared + 2)
    return groups * (projections + 2 * shape.shared * shape.head_dim * time)


def _mlp_operations(shape: Shape) -> float:
    return 2 * shape.width * shape.mlp * (len(shape.where.up) + 1)


def _layer_operations(shape: Shape, time: int) -> float:
    """Operations of one layer for one token."""
    return _attention_operations(shape, time, shape.groups) + _mlp_operations(shape)


def _own_operations(component: str, shape: Shape, time: int) -> float:
    """Operations for one token of what moves in the component's own layer, and of what reads it there."""
    if layer_of(component) is None:
        return 0.0
    if component.endswith("mlp"):
        return _mlp_operations(shape)
    return _attention_operations(shape, time, 1) + (0 if shape.parallel else _mlp_operations(shape))


def evaluation_operations(component: str, shape: Shape, time: int) -> float:
    """Operations that the loss of one token needs: the component that moved, the layers after it, the unembedding."""
    layer = layer_of(component)
    after = {"unembed": 0, "embed": shape.layers, FULL: shape.layers}.get(component)
    after = shape.layers - 1 - layer if after is None else after
    unembed = 2 * shape.width * shape.vocabulary
    return _own_operations(component, shape, time) + after * _layer_operations(shape, time) + unembed


def step_operations(component: str, shape: Shape, time: int) -> float:
    """Operations of one token in a gradient step: the forward pass, and as many again for each gradient that is needed.

    Frozen weights pass a gradient on to their inputs (one product more), moving weights take one (one more), ``full``
    does both, and so does a tied embedding where it is the unembedding.
    """
    forward = evaluation_operations(component, shape, time)
    tied = 2 * shape.width * shape.vocabulary if component == "embed" and shape.tied else 0
    return forward * 3 if component == FULL else 2 * forward + tied


@functools.cache
def matmul_rate(size: int = 512, repeats: int = 8) -> float:
    """Operations a second of a float32 matrix product on one thread of this machine's processor, measured."""
    a, b = torch.ones(size, size), torch.ones(size, size)
    times = []
    with one_thread():
        for _ in range(repeats):
            begin = time.perf_counter()
            a @ b
            times.append(time.perf_counter() - begin)
    return 2 * size**3 / min(times)


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for torch: the last bits depend on their number, and processes beat threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
