"""What happens to the clusters of a run when components are silenced and clusters steered towards.

RUN/check/       finished pieces, while it lasts: a file for each layer's components, and for each steered cluster
RUN/check.json   the table, written last: what cards and catalogue show
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from ..checks import causal
from ..checks.causal import Falls, Halves
from ..checks.intervals import Estimate
from ..model.ablation import silenced_losses
from ..model.components import layer_of
from ..model.engine import Engine
from ..model.steering import Steered, Steering
from ..posterior import stable_seed
from ..run.files import refusing, write_whole
from ..run.store import open_json, save_json
from ..text.runningtext import RunningText
from .rules import deals

FORMAT = 1
SHOWN = 3
"""Components that are kept of each cluster."""
TEXT = 16
"""Windows of the text that clusters are tilted from, at most."""


class RemovalCost(NamedTuple):
    """What silencing a component costs a cluster, nats."""

    component: str
    own: Estimate
    """Of its members; the interval is over windows."""
    others: float
    """Of all other tokens."""


class Effect(NamedTuple):
    """What was done to one cluster."""

    cluster: int
    costs: tuple[RemovalCost, ...]
    """Of the components that cost it most above other tokens, each by the spread of its costs over tokens."""
    falls: Falls | None
    """None where it was not steered towards."""


@dataclass(frozen=True)
class Checked:
    """A run with what is done to it.

    Args:
        engine: the measured model.
        windows: those that were measured, token ids.
        text: of their tokens.
        labels: the cluster of each.
        settings: of the steering.
        seed: of the halves of the text, and of the sets that a cluster is compared with.
    """

    engine: Engine
    windows: Int[ndarray, "windows length"]
    text: RunningText
    labels: Int[ndarray, " tokens"]
    settings: Steering = Steering()  # noqa: RUF009
    seed: int = 0

    @property
    def fit(self) -> Bool[ndarray, " tokens"]:
        """The half of the documents that clusters are steered on."""
        return next(deals(self.text, self.seed))[1]

    def steered(self, most: int | None) -> list[int]:
        """The clusters that can be steered towards, the largest first, so many at most."""
        return causal.steerable(self.labels, self.fit).tolist()[:most]

    def halves(self) -> Halves:
        """The model, ready to be steered."""
        fit, number = self.fit, self.text.windows
        on, at = (np.unique(number[half]) for half in (fit, ~fit))
        text = self.windows[on[np.arange(min(TEXT, len(on))) * len(on) // min(TEXT, len(on))]]
        steered = Steered(self.engine, text, self.windows[on], self.windows[at], self.settings)
        return Halves(steered, fit, self.text.token_id, number)

    def pieces(self, folder: Path) -> Path:
        """Where its unfinished work lies; what is left of others there is removed."""
        parts = (self.labels.tobytes().hex(), self.windows.tobytes().hex(), asdict(self.settings), self.seed)
        own = folder / "check" / f"{stable_seed(*parts):x}"
        with refusing(folder):
            own.mkdir(parents=True, exist_ok=True)
            for other in own.parent.iterdir():
                if other != own:
                    shutil.rmtree(other)
        return own


def rises(
    checked: Checked, names: Sequence[str], folder: Path, report: Callable[[str], None] = lambda what: None
) -> Float[ndarray, "tokens components"]:
    """By how much each token's loss rises where a component is silenced, layer by layer.

    Args:
        names: those that can be (`ablation.silenceable`).
        folder: where each finished layer is kept, and looked for.
    """
    found = np.empty((len(checked.labels), len(names)))
    start = None
    for layer in sorted({layer_of(name) for name in names}):
        own = [i for i, name in enumerate(names) if layer_of(name) == layer]
        file = folder / f"layer{layer}.npy"
        if not file.exists():
            report(f"components of layer {layer} silenced")
            start = checked.engine.losses(checked.windows) if start is None else start
            losses = silenced_losses(checked.engine, [names[i] for i in own], checked.windows)
            table = (losses - start).flatten(1).T.cpu().numpy()
            with refusing(folder):
                write_whole(file, lambda part, table=table: np.save(part, table))
        found[:, own] = np.load(file)
    return found


def fallen(
    checked: Checked, clusters: Sequence[int], folder: Path, report: Callable[[str], None] = lambda what: None
) -> Iterator[tuple[int, Falls]]:
    """Clusters steered towards, one after another; each finished one is kept in the folder."""
    halves = None
    for done, cluster in enumerate(clusters):
        file = folder / f"cluster{cluster}.json"
        if not file.exists():
            report(f"cluster {cluster} steered towards ({done + 1} of {len(clusters)})")
            halves = halves or checked.halves()
            found, _ = causal.steer(halves, checked.labels == cluster, (checked.seed, cluster))
            save_json(folder, file.name, {"falls": plain_values(found)})
        yield cluster, _falls(json.loads(file.read_text())["falls"])


def effects(
    checked: Checked, rise: Float[ndarray, "tokens components"], names: Sequence[str], falls: Mapping[int, Falls]
) -> list[Effect]:
    """What was done to each cluster, in their order."""
    labels, number = checked.labels, checked.text.windows
    others = causal.rest_means(rise, labels)
    order = np.argsort(-causal.excess(rise, labels), axis=1, kind="stable")[:, :SHOWN]
    found = []
    for cluster, first in enumerate(order.tolist()):
        member = labels == cluster
        costs = [
            RemovalCost(names[i], causal.mean_of(rise[member, i], number[member]), float(others[cluster, i]))
            for i in first
        ]
        found.append(Effect(cluster, tuple(costs), falls.get(cluster)))
    return found


# On disk -------------------------------------------------------------------------------------------------------------


def save_effects(found: Sequence[Effect], folder: str | Path, about: Mapping) -> Path:
    """Write check.json, whole or not at all; ``about`` is kept beside the table.

    Raises:
        ValueError: if the folder cannot be written.
    """
    content = {"format": FORMAT, "about": dict(about), "clusters": [plain_values(effect) for effect in found]}
    return save_json(folder, "check.json", content)


def open_effects(folder: str | Path) -> list[Effect]:
    """The table that `save_effects` wrote.

    Raises:
        ValueError: if there is none, or the file is damaged or of another format.
    """
    return open_json(folder, "check.json", FORMAT, "check", lambda held: [_effect(row) for row in held["clusters"]])


def plain_values(value):
    """As JSON holds it: tuples as lists, no NaN, no infinity, no half of a surrogate pair."""
    if isinstance(value, dict):
        return {key: plain_values(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain_values(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def _estimate(values: Sequence) -> Estimate:
    return Estimate(*(np.nan if value is None else value for value in values))


def _falls(values: Sequence) -> Falls:
    fit, test, own, rest, random, outside, by_outside = values
    rest, random = (np.nan if value is None else value for value in (rest, random))
    return Falls(fit, test, _estimate(own), rest, random, _estimate(outside), _estimate(by_outside))


def read_costs(values: Sequence) -> tuple[RemovalCost, ...]:
    """Costs as they stand in JSON."""
    return tuple(RemovalCost(component, _estimate(own), others) for component, own, others in values)


def read_falls(values: Sequence | None) -> Falls | None:
    """Falls as they stand in JSON."""
    return None if values is None else _falls(values)


def _effect(values: Sequence) -> Effect:
    cluster, costs, falls = values
    return Effect(cluster, read_costs(costs), read_falls(falls))
