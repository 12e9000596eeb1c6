"""What a cluster is: a card with its members in context, what they share, the components that respond, and a rule.

`cards` makes them for the clusters of a run, `for_labels` for any partition of its tokens, so that clusters compare
with k-means and token identity (`rule_table`). Labels are words of the rule; a language model can name clusters
too (`naming`), but nothing here needs one.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from ..checks.causal import Falls
from ..checks.intervals import Estimate
from ..estimator import standardise
from ..run.store import open_json, save_json
from ..text.runningtext import RunningText, running_text
from . import rules
from .conditions import Features, describe
from .effects import Effect, RemovalCost, plain_values, read_costs, read_falls
from .rules import Rule, Shared

if TYPE_CHECKING:
    from ..clustering import Clustering

FORMAT = 1
MIXED = "mixed"
"""Family of a cluster in which no family has half of the members."""
UNSURE = "no confident rule; often: "
"""What the label of a cluster without a confident rule begins with."""


class Example(NamedTuple):
    """A member in its context."""

    row: int
    """Its row in the result."""
    before: str
    token: str
    after: str
    domain: str
    document: str
    position: int


class Response(NamedTuple):
    """How a component responds to the members."""

    component: str
    mean: float
    """Mean of the standardised values: negative is expression, positive suppression."""
    agree: float
    """Share of the members whose value has the sign of the mean."""


class Near(NamedTuple):
    """A nearby cluster."""

    cluster: int
    distance: float
    """Euclidean, between the mean vectors."""


class Name(NamedTuple):
    """What a language model calls a cluster, and how well the name tells members from others (`naming`)."""

    label: str
    model: str
    accuracy: Estimate
    """Share of right answers on members and others that the name was not made from; 0.5 by guessing."""


@dataclass(frozen=True)
class Card:
    """A cluster, described."""

    cluster: int
    label: str
    """The rule, if it is confident; otherwise that there is none, and what is most telling."""
    family: str
    """The most frequent among members, see `runningtext.FAMILIES`; "mixed" if none has half of them."""
    family_share: float
    """Share of the members that are of the most frequent family."""
    size: int
    documents: int
    """How many documents members come from."""
    conductance: float | None
    reliability: float | None
    """Median over members of the cosine between their vectors from two halves of the chains; None for one chain."""
    tokens: tuple[tuple[str, int], ...]
    """The most frequent tokens, and how many members each has."""
    examples: tuple[Example, ...]
    """Members drawn at random, from as many windows as there are."""
    shared: tuple[Shared, ...]
    responses: tuple[Response, ...]
    """The components that respond most."""
    nearest: tuple[Near, ...]
    rule: Rule | None
    """None where members are in too few windows to fit and to judge one."""
    name: Name | None = None
    share: float | None = None
    """Share of the repetitions in which the cluster came back (`clustering.stable_clusters`); None without any."""
    loss: float | None = None
    """Median over members of their loss at w*, nats."""
    length: float | None = None
    """Median over members of the length of their rows, where 1 is the root mean square over all tokens. Rows are
    resolved, or standardised where only those were measured."""
    costs: tuple[RemovalCost, ...] = ()
    """What silencing components costs it, where that was tried (`effects`)."""
    falls: Falls | None = None
    """What steering towards it did, where that was tried."""
    path: tuple[int, ...] = ()
    """The groups of neighbouring clusters that it is in, from coarse to fine (`paths`)."""

    @property
    def title(self) -> str:
        """Its name in few words: a model's, or its label."""
        return self.name.label if self.name else self.label.replace(UNSURE, "often ", 1)


def cards(
    result,
    clustering: Clustering,
    *,
    features: Features | None = None,
    tokenizer=None,
    rows: Literal["center", "zscore"] | None = "center",
    whiten: bool = False,
    effects: Sequence[Effect] = (),
    examples: int = 12,
    seed: int = 0,
) -> list[Card]:
    """A card for each cluster of a measurement, in their order.

    Args:
        result: of `measure`, with the coordinates that say which tokens were measured.
        clustering: of its tokens, from `clustering.conductance_clusters`.
        features: from `conditions.describe`; made from the result when None.
        tokenizer: of the measured model, for characters cut into several tokens; see `runningtext.running_text`.
        rows, whiten: how the vectors that were clustered are standardised, as in `estimator.standardise`.
        effects: what was done to the clusters, of `effects.open_effects`.
        examples: members to show.
        seed: of the examples and of the halves that rules are fitted on.

    Raises:
        ValueError: if the clustering is not of this result, or the result names no tokens.
    """
    chi = result["susceptibility"].values
    if len(clustering.labels) != len(chi):
        raise ValueError(
            f"the clusters are of {len(clustering.labels):,} tokens, the result has {len(chi):,}: cluster it again"
        )
    loss = result["loss"].values if "loss" in result else None
    found = for_labels(
        features or describe(running_text(result, tokenizer), loss=loss),
        clustering.labels,
        vectors := standardise(chi, rows=rows),
        result["component"].values.tolist(),
        positions=standardise(chi, rows=rows, whiten=True) if whiten else None,
        conductance=clustering.conductance,
        reliability=_reliability(result, rows),
        share=clustering.share,
        loss=loss,
        length=_lengths(result, vectors),
        examples=examples,
        seed=seed,
    )
    done = {effect.cluster: {"costs": effect.costs, "falls": effect.falls} for effect in effects}
    return [replace(card, **done.get(card.cluster, {})) for card in found]


def _reliability(result, rows) -> Float[ndarray, " tokens"] | None:
    from ..checks.diagnostics import token_reliability

    return token_reliability(result, rows=rows).values if "half_susceptibility" in result else None


def _lengths(result, vectors: Float[ndarray, "tokens components"]) -> Float[ndarray, " tokens"]:
    if "resolved" in result:
        length = np.linalg.norm(result["resolved"].values.astype(np.float32), axis=(0, 2))
    else:
        length = np.linalg.norm(vectors, axis=1)
    return length / np.sqrt((length**2).mean())


def for_labels(
    features: Features,
    labels: Int[ndarray, " tokens"],
    vectors: Float[ndarray, "tokens components"],
    components: Sequence[str],
    *,
    positions: Float[ndarray, "tokens axes"] | None = None,
    conductance: Float[ndarray, " clusters"] | None = None,
    reliability: Float[ndarray, " tokens"] | None = None,
    share: Float[ndarray, " clusters"] | None = None,
    loss: Float[ndarray, " tokens"] | None = None,
    length: Float[ndarray, " tokens"] | None = None,
    examples: int = 12,
    seed: int = 0,
) -> list[Card]:
    """Cards for any partition of the tokens.

    Args:
        labels: cluster of each token, 0 and up without a gap; -1 for none.
        vectors: standardised susceptibilities, for what components do.
        components: names of its columns.
        positions: vectors whose means say which clusters are near; ``vectors`` when None.

    Raises:
        ValueError: if labels or vectors do not fit the tokens, or a cluster is empty.
    """
    labels = rules.check_labels(labels, len(features.text))
    positions = vectors if positions is None else positions
    if len(vectors) != len(labels) or len(positions) != len(labels) or vectors.shape[1] != len(components):
        raise ValueError(
            f"vectors must be {len(labels)} tokens x {len(components)} components, got {vectors.shape} and "
            f"{positions.shape}"
        )
    sizes = np.bincount(labels[labels >= 0])
    if (sizes == 0).any():
        raise ValueError(f"labels must number the clusters without a gap: {np.flatnonzero(sizes == 0)[0]} is empty")
    centres = np.array([positions[labels == c].mean(axis=0) for c in range(len(sizes))])
    text, families = features.text, features.text.families()
    made, path = [], paths(centres)
    for cluster, rule in enumerate(rules.rules(features, labels, seed=seed)):
        member = labels == cluster
        rows = np.flatnonzero(member)
        shown = draw(text, rows, examples, np.random.default_rng([seed, cluster]))
        tokens = Counter(text.names[i] for i in text.token_id[rows].tolist()).most_common(8)
        shared = rules.shared(features, member)
        family, count = Counter(families[rows].tolist()).most_common(1)[0]
        card = Card(
            cluster=cluster,
            label=_label(rule, shared, tokens),
            family=family if count >= len(rows) / 2 else MIXED,
            family_share=count / len(rows),
            size=len(rows),
            documents=len(np.unique(text.documents[rows])),
            conductance=None if conductance is None else float(conductance[cluster]),
            reliability=_median(reliability, rows),
            tokens=tuple(tokens),
            examples=tuple(example(text, row) for row in shown),
            shared=tuple(shared),
            responses=_responses(vectors[rows], components),
            nearest=_nearest(centres, cluster),
            rule=rule,
            share=None if share is None else float(share[cluster]),
            loss=_median(loss, rows),
            length=_median(length, rows),
            path=path[cluster],
        )
        made.append(card)
    return made


def _median(values: Float[ndarray, " tokens"] | None, rows: Int[ndarray, " m"]) -> float | None:
    return None if values is None else float(np.median(values[rows]))


def _label(rule: Rule | None, shared: Sequence[Shared], tokens: Sequence[tuple[str, int]]) -> str:
    if rule is not None and rule.confident:
        return rule.text
    return f"{UNSURE}{shared[0].condition if shared else tokens[0][0]}"


def draw(text: RunningText, rows: Int[ndarray, " m"], count: int, rng: np.random.Generator) -> list[int]:
    """Draw ``count`` of the rows at random, from as many different windows as possible."""
    rows = rng.permutation(rows)
    turn = np.zeros(len(rows), dtype=np.int64)
    for window in np.unique(text.windows[rows]):
        same = np.flatnonzero(text.windows[rows] == window)
        turn[same] = np.arange(len(same))
    return rows[np.argsort(turn, kind="stable")][:count].tolist()


def example(text: RunningText, row: int) -> Example:
    """A token in its context."""
    before, token, after = text.context(row)
    where = str(text.domain[row]), str(text.document[row]), int(text.position[row])
    return Example(int(row), before, token, after, *where)


def _responses(vectors: ndarray, components: Sequence[str], most: int = 6) -> tuple[Response, ...]:
    mean = vectors.mean(axis=0)
    agree = (np.sign(vectors) == np.sign(mean)).mean(axis=0)
    order = np.argsort(-np.abs(mean), kind="stable")[:most]
    return tuple(Response(components[i], float(mean[i]), float(agree[i])) for i in order.tolist())


def _nearest(centres: ndarray, cluster: int, most: int = 3) -> tuple[Near, ...]:
    distance = np.linalg.norm(centres - centres[cluster], axis=1)
    order = [int(i) for i in np.argsort(distance, kind="stable") if i != cluster][:most]
    return tuple(Near(i, float(distance[i])) for i in order)


# Levels above clusters ------------------------------------------------------------------------------------------------


def paths(means: Float[ndarray, "clusters d"]) -> list[tuple[int, ...]]:
    """The groups that each cluster is in, from coarse to fine: a tree of clusters whose mean rows point alike.

    Average linkage of one minus the cosine of mean rows [I], cut twice: into groups of twelve clusters on average, and
    into groups of four. At each cut, groups are numbered in the order of their first clusters.

    Returns:
        The numbers of a cluster's groups; nothing for fewer than eight clusters.
    """
    from scipy.cluster.hierarchy import fcluster, linkage

    count = len(means)
    if count < 8:
        return [()] * count
    length = np.linalg.norm(means, axis=1, keepdims=True)
    unit = np.divide(means, length, out=np.zeros_like(means), where=length > 0)
    apart = np.clip(1 - unit @ unit.T, 0, None)[np.triu_indices(count, 1)]
    tree = linkage(apart, "average")
    cuts = [fcluster(tree, max(2, round(count / size)), "maxclust").tolist() for size in (12, 4)]
    numbered = [{group: number for number, group in enumerate(dict.fromkeys(cut))} for cut in cuts]
    coarse, fine = ([number[group] for group in cut] for number, cut in zip(numbered, cuts, strict=True))
    return list(zip(coarse, fine, strict=True))


# Partitions to compare with, and the rules of all --------------------------------------------------------------------


def kmeans_labels(
    vectors: Float[ndarray, "tokens axes"], clusters: int, *, where: Bool[ndarray, " tokens"] | None = None, seed=0
) -> Int[ndarray, " tokens"]:
    """k-means on the vectors, as many clusters as asked for, numbered by size.

    Args:
        where: tokens that are clustered, the others getting -1; all by default. Conductance leaves the main body
            unclustered, so the tokens that it clustered make the closer comparison.
    """
    from sklearn.cluster import KMeans

    where = np.ones(len(vectors), dtype=bool) if where is None else where
    labels = np.full(len(vectors), -1, dtype=np.int64)
    labels[where] = KMeans(clusters, n_init=1, random_state=seed).fit_predict(vectors[where])
    return _by_size(labels)


def token_labels(text: RunningText, clusters: int, min_size: int = 20) -> Int[ndarray, " tokens"]:
    """Clusters by token identity alone: one for each of the most frequent tokens, as many as asked for.

    Tokens seen less than ``min_size`` times make no cluster, so there may be fewer.
    """
    _, index, counts = np.unique(text.token_id, return_inverse=True, return_counts=True)
    frequent = np.argsort(-counts, kind="stable")[:clusters]
    number = np.full(len(counts), -1, dtype=np.int64)
    frequent = frequent[counts[frequent] >= min_size]
    number[frequent] = np.arange(len(frequent))
    return number[index]


def _by_size(labels: Int[ndarray, " n"]) -> Int[ndarray, " n"]:
    names, sizes = np.unique(labels[labels >= 0], return_counts=True)
    number = np.full(int(labels.max(initial=-1)) + 1, -1, dtype=np.int64)
    number[names[np.argsort(-sizes, kind="stable")]] = np.arange(len(names))
    return np.where(labels >= 0, number[labels], -1)


def rule_table(partitions: Mapping[str, Int[ndarray, " tokens"]], features: Features, *, seed: int = 0):
    """The rules of several partitions of the same tokens, a row for each cluster.

    Returns:
        A `pandas.DataFrame` with partition, cluster, size, rule (text), precision and recall on halves that rules were
        not fitted on, each with _low and _high, f1, confident, and split. A cluster that gets no rule has NaN, f1
        0, and is not confident.
    """
    import pandas as pd

    records = []
    for partition, labels in partitions.items():
        sizes = np.bincount(labels[labels >= 0])
        for cluster, rule in enumerate(rules.rules(features, labels, seed=seed)):
            record = {"partition": partition, "cluster": cluster, "size": int(sizes[cluster])}
            for name in ("precision", "recall"):
                value = getattr(rule, name) if rule else Estimate(math.nan, 0.0, 1.0)
                record |= {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
            said = {"rule": rule.text, "f1": rule.f1, "confident": rule.confident, "split": rule.split} if rule else {}
            records.append(record | {"rule": "", "f1": 0.0, "confident": False, "split": ""} | said)
    return pd.DataFrame.from_records(records)


# On disk -------------------------------------------------------------------------------------------------------------


def save_cards(found: Iterable[Card], folder: str | Path, about: Mapping | None = None) -> Path:
    """Write cards.json, whole or not at all; ``about`` is kept beside the cards.

    Raises:
        ValueError: if the folder cannot be written.
    """
    content = {"format": FORMAT, "about": dict(about or {}), "cards": [plain_values(asdict(card)) for card in found]}
    return save_json(folder, "cards.json", content)


def open_cards(folder: str | Path) -> list[Card]:
    """The cards that `save_cards` wrote.

    Raises:
        ValueError: if there are none, or the file is damaged or of another format.
    """
    return open_json(folder, "cards.json", FORMAT, "cards", lambda held: [_read(card) for card in held["cards"]])


def _estimate(values: Sequence) -> Estimate:
    value, low, high = values
    return Estimate(math.nan if value is None else value, low, math.inf if high is None else high)


def _read(card: dict) -> Card:
    rule, name = card["rule"], card["name"]
    kept = {
        "tokens": tuple((token, count) for token, count in card["tokens"]),
        "examples": tuple(Example(*values) for values in card["examples"]),
        "shared": tuple(Shared(*values[:4], _estimate(values[4])) for values in card["shared"]),
        "responses": tuple(Response(*values) for values in card["responses"]),
        "nearest": tuple(Near(*values) for values in card["nearest"]),
        "rule": rule
        and Rule(
            tuple(rule["conditions"]),
            _estimate(rule["precision"]),
            _estimate(rule["recall"]),
            tuple(math.nan if v is None else v for v in rule["fitted"]),
            tuple(rule["tested"]),
            rule["split"],
            rule.get("halves", 0),  # of cards made before there was one
        ),
        "name": name and Name(name[0], name[1], _estimate(name[2])),
        "costs": read_costs(card.get("costs", ())),
        "falls": read_falls(card.get("falls")),
        "path": tuple(card.get("path", ())),
    }
    return Card(**card | kept)
