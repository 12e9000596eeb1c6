"""The plan of a measurement: everything that it depends on, and the tasks that it falls into."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version

import numpy as np
import torch
from jaxtyping import Int
from numpy import ndarray

from ..estimator import ESTIMATORS, Estimator
from ..model.components import FULL, Component, check_component, names
from ..model.engine import TOKENS_PER_PASS
from ..model.loading import LanguageModel, load_model
from ..model.shapes import Shape
from ..posterior import Settings
from ..text.corpus import Document, Windows, bundled_windows, hub_documents, tokenizer_hash, windows_from_documents
from .cost import Work, chains_of
from .profiles import Profile, get
from .shards import Stretch, cut

FORMAT = 2
"""Version of the run folder: raised when the numbers that a plan leads to change."""


GRADIENT_WINDOWS = 8
"""Probe windows in a task of a measurement to first order."""


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
    """Components to measure; all of them by default."""
    estimator: Estimator = "two_chain"
    """Whose susceptibilities the result holds. ``two_chain`` adds the unrestricted chain, and its result holds both."""
    blocks: int | None = None
    """Consecutive blocks into which the draws of a chain are summed: by default two, which give split halves, or one of
    a single draw."""
    channels: int | None = None
    """Channels of resolved rows (`estimator.ResolvedSums`), shared equally among the components; 0 for none. By default
    512, or 2 048 to first order."""
    first_order: bool = False
    """Gradients at w* in place of chains (`run.firstorder`): of the settings only γ and the seed count then."""
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
            check_component(component, shape)
        if FULL in self.components or len(set(self.components)) < len(self.components):
            raise ValueError("components must be named once each, without 'full': two_chain runs it by itself")
        if self.estimator not in ESTIMATORS:
            raise ValueError(f"unknown estimator {self.estimator!r}: it must be one of {ESTIMATORS}")
        if self.blocks is None:
            object.__setattr__(self, "blocks", min(2, self.settings.draws))
        if not 1 <= self.blocks <= self.settings.draws:
            raise ValueError(f"blocks must lie between 1 and the {self.settings.draws} draws, got {self.blocks}")
        if self.channels is None:
            object.__setattr__(self, "channels", 2048 if self.first_order else 512)
        if self.channels < 0:
            raise ValueError(f"channels must be 0 (none) or more, got {self.channels}")
        if self.first_order and not self.channels:
            raise ValueError("a measurement to first order keeps channels: give at least one for each component")
        if self.shards < 1:
            raise ValueError(f"shards must be at least 1, got {self.shards}")
        if self.tokens_per_pass is not None and self.tokens_per_pass < 1:
            raise ValueError(f"tokens_per_pass must be at least 1, got {self.tokens_per_pass}")
        own = None if self.model.tokens is None else tokenizer_hash(self.model.tokens)
        for role in ("sampling", "loss", "probe"):
            windows = getattr(self, role)
            highest = int(windows.ids.max())
            if highest >= shape.vocabulary:
                mine = own and windows.provenance.get("tokenizer") == own
                reason = "its tokenizer has more tokens than its embedding has rows, so one of them is another model's"
                raise ValueError(
                    f"the {role} windows hold token id {highest}, beyond the model's vocabulary of {shape.vocabulary}: "
                    + (reason if mine else "they were made with another tokenizer")
                )
            if shape.longest and windows.length - 1 > shape.longest:
                raise ValueError(
                    f"the {role} windows hold {windows.length} tokens, and the model reads {shape.longest} at once: "
                    f"cut windows of at most {shape.longest + 1} with --length"
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
        own = {"settings": replace(profile.settings, seed=seed), "first_order": profile.first_order}
        return cls(model=model, **windows | own | changes)

    @property
    def sampled(self) -> tuple[str, ...]:
        """What chains run for: the components, and the whole model where the estimator needs it."""
        return chains_of(self.components, self.estimator)

    @property
    def width(self) -> int:
        """Channels of each component."""
        return max(1, self.channels // len(self.components)) if self.channels else 0

    @property
    def whole(self) -> list[Task]:
        """A task for each group and chain, all of the probe text in one: the longest first, so that workers finish
        together."""
        if self.first_order:
            return [Task(self.components, 0, gradients=True)]
        work = Work.of(self)
        together = sorted(work.groups, key=work.operations, reverse=True)
        return [Task(group, chain) for group in together for chain in range(self.settings.chains)]

    @property
    def tasks(self) -> list[Task]:
        """All tasks, one for each shard, the longest first."""
        return self.left({})

    def left(self, finished: Mapping[str, Sequence[Stretch | None]]) -> list[Task]:
        """The tasks that are left to do.

        Args:
            finished: stretches of the probe windows that are done, by the name of the whole task; None stands for all.
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

    def pieces(self, task: Task) -> list[Task]:
        """The shards of a whole task."""
        return [self._part(task, stretch) for stretch in self.stretches()]

    def amount(self, task: Task) -> int:
        """What progress counts of a task: draws of single components, or tokens of a measurement to first order."""
        if not self.first_order:
            return len(task.components) * self.settings.draws
        first, end = task.windows or (0, len(self.probe))
        return (end - first) * (self.probe.length - 1)

    def operations(self, task: Task) -> float:
        """Operations of a task, without those done once at w*: what tells how long it takes beside others."""
        first, end = task.windows or (0, len(self.probe))
        tokens = (end - first) * (self.probe.length - 1)
        return float(tokens) if self.first_order else replace(Work.of(self), tokens=tokens).operations(task.components)

    def _part(self, task: Task, stretch: Stretch) -> Task:
        return task if stretch == (0, len(self.probe)) else replace(task, windows=stretch)

    def stretches(self, first: int = 0, end: int | None = None) -> list[Stretch]:
        """How the probe windows from ``first`` to ``end`` are cut into shards."""
        if self.first_order:  # small ones: each stands for itself, and a stop costs no more than one
            end = len(self.probe) if end is None else end
            starts = range(first, end, GRADIENT_WINDOWS)
            return [(start, min(start + GRADIENT_WINDOWS, end)) for start in starts]
        return cut(first, len(self.probe) if end is None else end, len(self.probe), self.rows, self.shards)

    @property
    def rows(self) -> int:
        """Probe windows in one pass of the engine."""
        tokens = self.tokens_per_pass or TOKENS_PER_PASS.get(self.model.device.type, TOKENS_PER_PASS["cuda"])
        return max(1, tokens // (self.probe.length - 1))

    def manifest(self) -> dict:
        """What identifies the plan, as JSON-able values."""
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
            **({"channels": self.channels} if self.channels else {}),
            **({"first_order": True} if self.first_order else {}),
            "versions": {"spectrolib": version("spectrolib"), "torch": torch.__version__, "numpy": np.__version__},
            "machine": {"processor": platform.machine(), "device": self.model.device.type} | passes,
        }


def profile_windows(profile: Profile, model: LanguageModel) -> dict[str, Windows]:
    """The sampling, loss and probe windows of a profile, disjoint."""
    if profile.source == "bundled":
        _check_reads_bundled(profile, model)
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
    found = text_windows(profile, model, hub_documents(profile.source, limit=2 * total), profile.source)
    if profile.probe_source:
        documents = hub_documents(profile.probe_source, limit=2 * profile.probe_windows)
        found["probe"] = cut_probe_windows(profile, model, documents, profile.probe_source)
    return found


def _check_reads_bundled(profile: Profile, model: LanguageModel) -> None:
    """Refuse a model with a tokenizer of its own, and say which texts it could take."""
    if model.tokens is not None and tokenizer_hash(model.tokens) != bundled_windows("heldout").provenance["tokenizer"]:
        raise ValueError(
            f"the text of profile {profile.name!r} is cut with the bundled model's tokenizer, and {model.name!r} has "
            "another: give text to cut with its own, --text FILE or FOLDER, or --data NAME of a data set on the hub"
        )


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


def cut_probe_windows(profile: Profile, model: LanguageModel, documents: Iterable[Document], source: str) -> Windows:
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
    gradients: bool = False
    """Whether it is of a measurement to first order."""

    @property
    def name(self) -> str:
        """A name fit for a file; it says which task of its plan this is."""
        if self.gradients:
            name = "gradients"
        else:
            first = Component.of(self.components[0])
            name = f"{first if first.layer is None else f'layer{first.layer}'}.chain{self.chain}"
        return name if self.windows is None else f"{name}.windows{self.windows[0]}-{self.windows[1]}"
