"""The plan of a measurement: everything that it depends on, the tasks that it falls into, and what it costs."""

from __future__ import annotations

import functools
import platform
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from jaxtyping import Int
from numpy import ndarray

from .components import FULL, Shape, check, layer_of, names
from .corpus import (
    Document,
    Windows,
    bundled_windows,
    hub_documents,
    tokenizer_hash,
    windows_from_documents,
)
from .engine import groups
from .estimator import ESTIMATORS, Estimator
from .models import LanguageModel, load_model
from .posterior import Settings
from .profiles import Profile, get

FORMAT = 2
"""Version of the run folder: raised when the numbers that a plan leads to change."""


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
        own = None if self.model.tokens is None else tokenizer_hash(self.model.tokens)
        for role in ("sampling", "loss", "probe"):
            windows = getattr(self, role)
            highest = int(windows.ids.max())
            if highest >= shape.vocabulary:
                raise ValueError(
                    f"the {role} windows hold token id {highest}, beyond the model's vocabulary of {shape.vocabulary}: "
                    "they were made with another tokenizer"
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
    def tasks(self) -> list[Task]:
        """All tasks, the longest first, so that workers finish together."""
        together = sorted(groups([*self.components, FULL]), key=lambda group: -_operations(self, group))
        return [Task(group, chain) for group in together for chain in range(self.settings.chains)]

    def manifest(self) -> dict:
        """What identifies the plan, as JSON-able values."""
        from . import __version__

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
            "machine": {"processor": platform.machine(), "device": self.model.device.type},
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
    if model.tokens is None:
        raise ValueError(f"model {model.name!r} has no tokenizer to cut text into windows with")
    sizes = {"sampling": profile.sampling_windows, "loss": profile.loss_windows, "probe": profile.probe_windows}
    total = sum(sizes.values())
    windows = windows_from_documents(documents, model.tokens, length=profile.length, count=total, seed=0, source=source)
    order = np.random.default_rng(0).permutation(total)
    parts = np.split(order, np.cumsum(list(sizes.values()))[:-1])
    return {role: windows.take(np.sort(part)) for role, part in zip(sizes, parts, strict=True)}


def _spread(available: int, wanted: int) -> Int[ndarray, " wanted"]:
    """Indices spread evenly over what is available, so that every domain is met."""
    return np.arange(wanted) * available // wanted


@dataclass(frozen=True)
class Task:
    """Components that share a prefix, and the number of a chain."""

    components: tuple[str, ...]
    chain: int

    @property
    def name(self) -> str:
        """A name fit for a file; it says which task of its plan this is."""
        layer = layer_of(self.components[0])
        return f"{self.components[0] if layer is None else f'layer{layer}'}.chain{self.chain}"


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
    s, sampled = plan.settings, [*plan.components, FULL]
    teams = s.chains * len(sampled)
    return Cost(
        tasks=len(plan.tasks),
        steps=teams * s.steps * len(s.members),
        token_steps=float(teams * s.steps * _batch_tokens(plan)),
        token_evaluations=float(teams * s.draws * _draw_tokens(plan)),
        operations=s.chains * _operations(plan, sampled),
    )


def _batch_tokens(plan: Plan) -> int:
    """Tokens that a team puts through a gradient at a step."""
    s = plan.settings
    return sum(map(s.drives, s.members)) * s.batch_size * (plan.sampling.length - 1)


def _draw_tokens(plan: Plan) -> int:
    """Tokens whose loss a team needs at a draw."""
    tokens = sum(len(windows) * (windows.length - 1) for windows in (plan.probe, plan.loss))
    return len(plan.settings.members) * tokens


def _operations(plan: Plan, components: Iterable[str]) -> float:
    """Operations of one team of each component."""
    s, shape = plan.settings, plan.shape
    return sum(
        s.steps * _batch_tokens(plan) * step_operations(name, shape, plan.sampling.length - 1)
        + s.draws * _draw_tokens(plan) * evaluation_operations(name, shape, plan.probe.length - 1)
        for name in components
    )


def _layer_operations(shape: Shape, time: int) -> float:
    """Operations of one layer for one token: four projections, the MLP, causal attention over half the window."""
    return 2 * shape.width * (4 * shape.width + 2 * shape.mlp) + 2 * shape.width * time


def _own_operations(component: str, shape: Shape, time: int) -> float:
    """Operations of the component alone for one token."""
    if component.endswith("mlp"):
        return 4 * shape.width * shape.mlp
    if layer_of(component) is not None:
        return 8 * shape.width * shape.head_dim + 2 * shape.head_dim * time
    return 0.0


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
    does both.
    """
    forward = evaluation_operations(component, shape, time)
    return forward * 3 if component == FULL else 2 * forward


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
