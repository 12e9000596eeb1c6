"""The measurements behind the causal tests: components silenced, clusters steered, text tilted.

All on the bundled model and the shipped probe windows, for two sets of clusters of the same tokens: those of resolved
rows (`resolved`), and those of the paper's rows (`shipped`). What is predicted comes from what ships, and from a
measurement to first order, which is carried out again. Every finished piece is kept in the run folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from spectrolib.checks import causal
from spectrolib.checks.tilting import TiltedMeans, component_response, two_chain_response
from spectrolib.dictionaries.windows import measured_windows
from spectrolib.estimator import standardise, with_estimator
from spectrolib.model.ablation import silenceable, silenced_losses
from spectrolib.model.engine import Engine, one_thread
from spectrolib.model.loading import engine_of
from spectrolib.model.steering import Steered, Steering
from spectrolib.reading.cards import kmeans_labels
from spectrolib.reading.rules import deals
from spectrolib.run.files import write_whole
from spectrolib.run.measure import measure
from spectrolib.run.plan import Plan
from spectrolib.run.resolved import rows_of
from spectrolib.run.store import save_json

from .. import DATA, directions, shipped

STEERED, TEXT = 80, 16
"""Clusters of each kind that are steered towards; windows of the text that they are tilted from."""
TILTED, COMPONENTS, MOST = 6, 3, 4
"""Clusters of each kind that text is tilted towards, components of each, and windows that hold the members at most."""
H, BEND = 0.3, (0.9,)
"""Tilts: of all pairs, and further ones of the first pair of each kind."""


@dataclass(frozen=True)
class World:
    """Everything that is measured on, and what it is compared with."""

    plan: Plan
    engine: Engine
    result: object
    """The shipped measurement."""
    windows: Int[ndarray, "windows length"]
    labels: Mapping[str, Int[ndarray, " tokens"]]
    """Clusters of each kind of rows."""
    seed: int = 0

    @classmethod
    def shipped(cls, seed: int = 0) -> World:
        """The bundled model with profile `book`."""
        result, plan = shipped.shipped_result(), Plan.from_profile("book", first_order=True, channels=2048)
        with np.load(DATA / "resolved.npz") as stored:
            labels = {"resolved": stored["labels"], "paper": shipped.clusters().labels}
        return cls(plan, engine_of(plan.model), result, measured_windows(result).ids, labels, seed)

    @property
    def token_id(self) -> Int[ndarray, " tokens"]:
        return self.result["token_id"].values

    @property
    def sequence(self) -> Int[ndarray, " tokens"]:
        return self.result["sequence"].values

    @property
    def names(self) -> list[str]:
        """The components that can be silenced."""
        return silenceable(self.result["component"].values.tolist())

    @property
    def columns(self) -> Int[ndarray, " components"]:
        """Where they stand among all components."""
        every = self.result["component"].values.tolist()
        return np.array([every.index(name) for name in self.names])

    def chi(self, estimator: str) -> Float[ndarray, "tokens components"]:
        """Susceptibilities of all components as shipped."""
        return with_estimator(self.result, estimator)["susceptibility"].values.astype(np.float64)


def run(folder: Path, world: World | None = None) -> None:
    """Carry out what is not finished, and write ``made/causal.json``."""
    world = world or World.shipped()
    with one_thread():
        first = measure(world.plan, folder / "first", progress=False)
        rise = silenced(world, folder)
        table = {
            "settings": {
                "seed": world.seed,
                "steering": asdict(Steering()) | {"clusters": STEERED, "text": TEXT},
                "tilting": {"h": H, "windows": MOST} | asdict(sampler(world)),
            },
            "components": world.names,
            "ablation": ablation(world, rise, first),
            "tilting": tilting(world, folder),
            "steering": steering(world, folder, rows(world, first)),
            "manifest": world.plan.manifest(),
            "clusters": {kind: int(labels.max()) + 1 for kind, labels in world.labels.items()},
        }
    made = folder / "made"
    made.mkdir(exist_ok=True)
    (made / "causal.json").write_text(json.dumps(plain(table), indent=1) + "\n", encoding="utf-8")


def plain(value):
    """As JSON holds it: five digits, no NaN."""
    if isinstance(value, Mapping):
        return {key: plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple | ndarray):
        return [plain(v) for v in value]
    if isinstance(value, float | np.floating):
        return float(f"{value:.5g}") if np.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value


# Components silenced -------------------------------------------------------------------------------------------------


def silenced(world: World, folder: Path) -> Float[ndarray, "tokens components"]:
    """By how much each token's loss rises where a component is silenced; kept in the folder."""
    file = folder / "silenced.npy"
    if not file.exists():
        start = world.engine.losses(world.windows)
        losses = silenced_losses(world.engine, world.names, world.windows)
        write_whole(file, lambda part: np.save(part, (losses - start).flatten(1).T.cpu().numpy()))
    return np.load(file).astype(np.float64)


def predictions(
    world: World, rise: Float[ndarray, "tokens components"], first
) -> dict[str, Float[ndarray, "tokens components"]]:
    """What each kind of row, and what simpler knowledge, says of the rise: larger means more.

    The sign of a susceptibility is turned, so that expression predicts a rise.
    """
    take = world.columns
    moment = world.result["restricted_moment"].values.astype(np.float64)
    two = -standardise(world.chi("two_chain"))[:, take]
    owner, lengths = first["channel_component"].values, first["resolved"].values.astype(np.float32)
    size = np.stack([np.sqrt((lengths[..., owner == name] ** 2).sum(axis=(0, 2))) for name in world.names], axis=1)
    elsewhere = causal.same_token_elsewhere(rise, world.token_id, world.sequence)
    loss = np.repeat(world.result["loss"].values.astype(np.float64)[:, None], len(take), axis=1)
    return {
        "covariance (one chain)": -standardise(world.chi("one_chain"))[:, take],
        "two chains": two,
        "first order": -standardise(first["susceptibility"].values)[:, take],
        "first moment": standardise(moment)[:, take],
        "gradient size": standardise(size, rows=None),
        "loss": standardise(loss, rows=None),
        "same token elsewhere": (elsewhere - elsewhere.mean(axis=0)) / rise.std(axis=0),
        "two chains, rows shuffled": np.random.default_rng(world.seed).permutation(two),
    }


def ablation(world: World, rise: Float[ndarray, "tokens components"], first) -> dict:
    """How far rows and simpler knowledge predict what silencing costs, token by token and cluster by cluster."""
    known, windows = predictions(world, rise, first), world.sequence

    def correlations(predicted: ndarray, seen: ndarray) -> list:
        return [causal.rank_correlation(p, s, windows, world.seed) for p, s in zip(predicted.T, seen.T, strict=True)]

    found = {
        "mean": rise.mean(axis=0),
        "signed": {name: correlations(predicted, rise) for name, predicted in known.items()},
        "size": {
            name: correlations(np.abs(predicted) if name not in ("loss", "gradient size") else predicted, np.abs(rise))
            for name, predicted in known.items()
        },
        "uphill": uphill(world),
        "clusters": {},
        "costs": {},
    }
    for kind, labels in world.labels.items():
        lost = causal.excess(rise, labels)
        found["clusters"][kind] = {
            name: causal.profiles(causal.cluster_means(predicted, labels), lost, world.seed)._asdict()
            for name, predicted in known.items()
            if name != "loss"  # the same for all components: it names none
        }
        found["costs"][kind] = costs(rise, labels, lost, causal.cluster_means(known["two chains"], labels))
    return found


def uphill(world: World) -> dict:
    """The small move that the covariance speaks of: each component a little way along ∇L, where L rises.

    The slopes of every other window's tokens ship (`directions`), along the gradients of two texts.
    """
    table = directions.shipped()
    some = np.isin(world.sequence, table.windows)
    along = standardise((table.values["loss 1"] + table.values["loss 2"]) / 2)[:, world.columns]
    return {
        name: [
            causal.rank_correlation(predicted, seen, world.sequence[some], world.seed)
            for predicted, seen in zip(-standardise(world.chi(name)[some])[:, world.columns].T, along.T, strict=True)
        ]
        for name in ("one_chain", "two_chain")
    }


def costs(rise: ndarray, labels: ndarray, lost: ndarray, row: ndarray) -> list[dict]:
    """Of each cluster, the component whose removal hurts it most above others, and the one that its row names; nats."""
    own, others = causal.cluster_means(rise, labels), causal.rest_means(rise, labels)
    return [
        {"worst": int(worst), "own": own[c, worst], "others": others[c, worst], "named": int(row[c].argmax())}
        for c, worst in enumerate(lost.argmax(axis=1))
    ]


# Clusters steered towards --------------------------------------------------------------------------------------------


def rows(world: World, first) -> dict[str, Float[ndarray, "tokens channels"]]:
    """The rows that each kind of clusters was cut from."""
    return {"resolved": rows_of(first), "paper": shipped.vectors()}


def halves(world: World) -> causal.Halves:
    """Half of the documents to steer on, half to look at."""
    _, fit = next(deals(shipped.features().text, world.seed))
    on, at = (np.unique(world.sequence[half]) for half in (fit, ~fit))
    text = world.windows[on[np.arange(TEXT) * len(on) // TEXT]]
    steered = Steered(world.engine, text, world.windows[on], world.windows[at])
    return causal.Halves(steered, fit, world.token_id, world.sequence)


def steering(world: World, folder: Path, tables: Mapping[str, Float[ndarray, "tokens channels"]]) -> dict:
    """Clusters of each kind steered towards, their controls, and what else fell with them."""
    dealt, found = halves(world), {}
    for kind, labels in world.labels.items():
        rng = np.random.default_rng([world.seed, len(kind)])
        able = causal.steerable(labels, dealt.fit)
        chosen = np.sort(rng.permutation(able)[:STEERED])
        simple = kmeans(folder / f"kmeans-{kind}.npy", tables[kind], labels, world.seed)
        others = [likest(labels == c, simple, dealt.fit) for c in chosen]
        pieces, falls = [], []
        for c, partner in zip(chosen.tolist(), others, strict=True):
            piece, fall = steered_piece(world, folder, dealt, kind, c, simple == partner)
            pieces.append(piece)
            falls.append(fall)
        found[kind] = {
            "able": len(able),
            "clusters": pieces,
            "together": together(world, dealt.fit, labels, chosen, np.array(falls), tables[kind]),
        }
    return found


def kmeans(
    file: Path, table: Float[ndarray, "tokens channels"], labels: Int[ndarray, " tokens"], seed: int
) -> Int[ndarray, " tokens"]:
    """As many clusters of k-means on the rows of the clustered tokens; kept in a file."""
    if not file.exists():
        found = kmeans_labels(thinned(table), int(labels.max()) + 1, where=labels >= 0, seed=seed)
        write_whole(file, lambda part: np.save(part, found))
    return np.load(file)


def thinned(table: Float[ndarray, "tokens channels"], most: int = 256) -> Float[ndarray, "tokens channels"]:
    """Rows of unit length with so many channels at most, evenly taken: k-means of thousands takes long."""
    some = table[:, :: max(1, table.shape[1] // most)]
    return some / np.maximum(np.linalg.norm(some, axis=1, keepdims=True), 1e-12)


def likest(member: Bool[ndarray, " tokens"], labels: Int[ndarray, " tokens"], fit: Bool[ndarray, " tokens"]) -> int:
    """The cluster of another partition that is closest in size, of those that can be steered towards."""
    able = causal.steerable(labels, fit)
    sizes = np.bincount(labels[labels >= 0])[able]
    return int(able[np.abs(sizes - member.sum()).argmin()])


def steered_piece(
    world: World, folder: Path, dealt: causal.Halves, kind: str, cluster: int, partner: Bool[ndarray, " tokens"]
) -> tuple[dict, Float[ndarray, " tokens"]]:
    """One cluster with its controls; kept in the folder."""
    file = folder / "steered" / f"{kind}-{cluster}.npz"
    if not file.exists():
        found, fall = causal.steer(dealt, world.labels[kind] == cluster, (world.seed, cluster))
        simple = dealt.mean(dealt.fall(partner), partner)
        piece = {"cluster": cluster} | found._asdict() | {"k-means": simple, "k-means size": int(partner.sum())}
        file.parent.mkdir(exist_ok=True)
        write_whole(file, lambda part: np.savez(part, fall=fall, piece=json.dumps(plain(piece))))
    with np.load(file) as stored:
        return json.loads(stored["piece"].item()), stored["fall"]


def together(
    world: World,
    fit: Bool[ndarray, " tokens"],
    labels: Int[ndarray, " tokens"],
    chosen: Int[ndarray, " steered"],
    falls: Float[ndarray, "steered tokens"],
    table: Float[ndarray, "tokens channels"],
) -> dict:
    """Which other clusters fall with the one that is steered towards: rank correlations of predictions with falls.

    Members in the half that is steered on make a cluster's prediction, those in the other half are what falls.
    """
    held = causal.steerable(labels, fit)
    on, at = (np.where(half & np.isin(labels, held), np.searchsorted(held, labels), -1) for half in (fit, ~fit))
    seen = causal.cluster_means(np.nan_to_num(falls.T), at).T
    place = np.searchsorted(held, chosen)
    before, after = causal.cluster_means(table, on), causal.cluster_means(table, at)
    names = np.where(labels >= 0, labels, -1)
    known = np.isin(labels, held)
    tokens = causal.shared_tokens(np.where(known, np.searchsorted(held, names), -1), world.token_id)
    loss = causal.cluster_means(world.result["loss"].values.astype(np.float64)[:, None], at)[:, 0]
    length = np.linalg.norm(after, axis=1)
    predicted = {
        "rows": before[place] @ after.T,
        "shared tokens": tokens[place],
        "row length": np.repeat(length[None], len(place), axis=0),
        "loss": np.repeat(loss[None], len(place), axis=0),
    }
    return {"clusters": len(held)} | {
        name: agreement(table, seen, place, world.seed) for name, table in predicted.items()
    }


def agreement(
    predicted: Float[ndarray, "steered clusters"],
    seen: Float[ndarray, "steered clusters"],
    place: Int[ndarray, " steered"],
    seed: int,
) -> dict:
    """Rank correlation over all other clusters, on average over those steered towards.

    The level of chance is the same with the prediction for another of those.
    """
    count = len(place)
    table = np.zeros((count, count))
    for i in range(count):
        for j in range(count):
            others = np.setdiff1d(np.arange(predicted.shape[1]), [place[i], place[j]])
            pair = causal.profiles(*(np.stack([x[others]] * 2) for x in (predicted[j], seen[i])))
            table[i, j] = pair.agreement.value
    off = table.sum() - np.trace(table)
    return {
        "agreement": causal.mean_of(np.diag(table), seed=seed),
        "chance": off / (count * (count - 1)),
        "each": np.diag(table),
    }


# Text tilted ---------------------------------------------------------------------------------------------------------


def sampler(world: World):
    """Plain SGLD with the posterior of profile `book`, mirrored, on few windows at a time.

    The chains share noise and minibatches, so one draw says much. But it is read on all sampling windows: the gradient
    of the mean loss is small at w*, and some dozens of windows have another one.
    """
    return replace(
        world.plan.settings,
        seed=world.seed,
        batch_size=2,
        chains=1,
        draws=1,
        steps_between_draws=5,
        burn_in=8,
        tilt=0.0,
    )


def held(
    world: World, member: Bool[ndarray, " tokens"]
) -> tuple[Bool[ndarray, " tokens"], Int[ndarray, " some"], Float[ndarray, "some time"]]:
    """The members in the few windows that hold most, those windows, and the weights of their tokens."""
    number, count = np.unique(world.sequence[member], return_counts=True)
    some = np.sort(number[np.argsort(-count, kind="stable")][:MOST])
    member = member & np.isin(world.sequence, some)
    weights = member.reshape(len(world.windows), -1)[some] / member.sum()
    return member, some, weights


def respond(world: World, folder: Path, kind: str, cluster: int, component: str, h: float) -> TiltedMeans:
    """The response of a component to more of a cluster; kept in the folder."""
    file = folder / "tilted" / f"{kind}-{cluster}-{component.replace(' ', '')}-{h}.json"
    if not file.exists():
        _, some, weights = held(world, world.labels[kind] == cluster)
        found = component_response(
            world.engine,
            component,
            sampler(world),
            h,
            sampling=world.plan.sampling,
            read=world.plan.sampling,
            windows=world.windows[some],
            weights=weights,
        )
        file.parent.mkdir(exist_ok=True)
        save_json(file.parent, file.name, {name: np.asarray(value).tolist() for name, value in asdict(found).items()})
    stored = json.loads(file.read_text())
    return TiltedMeans(stored["h"], stored["nbeta"], np.array(stored["rise"]), np.array(stored["moment"]))


def tilting(world: World, folder: Path) -> dict:
    """Responses to tilted text beside the susceptibilities that ship, for both estimators; and where the line bends.

    The unrestricted chain's first moment, which the two-chain value needs at h and at -h, is the shipped one at h = 0:
    the mean of the two up to O(h²).
    """
    every = world.result["component"].values.tolist()
    one, two = (world.chi(name) for name in ("one_chain", "two_chain"))
    pairs, bend = [], []
    for kind, labels in world.labels.items():
        rng = np.random.default_rng([world.seed, len(kind), 1])
        for cluster in rng.permutation(int(labels.max()) + 1)[:TILTED].tolist():
            member, some, _ = held(world, labels == cluster)
            moment = np.full((1, 2), world.result["full_moment"].values[member].mean())
            own = np.random.default_rng([world.seed, len(kind), cluster])
            for component in own.permutation(world.names)[:COMPONENTS].tolist():
                found, column = respond(world, folder, kind, cluster, component, H), every.index(component)
                about = {"kind": kind, "cluster": cluster, "component": component}
                pairs.append(
                    about
                    | {
                        "tokens": int(member.sum()),
                        "windows": len(some),
                        "predicted": one[member, column].mean(),
                        "seen": found.one_chain(),
                        "draws": (found.rise[:, 0] - found.rise[:, 1]) / (2 * found.h * found.nbeta),
                        "two predicted": two[member, column].mean(),
                        "two seen": two_chain_response(found, replace(found, moment=moment)),
                    }
                )
        (about,) = [pair for pair in pairs if pair["kind"] == kind][:1]
        for h in (*BEND, H):
            found = respond(world, folder, kind, about["cluster"], about["component"], h)
            bend.append(
                {name: about[name] for name in ("kind", "cluster", "component")}
                | {"h": h, "seen": found.one_chain(), "rise": found.rise.mean(axis=0)}
            )
    return {"pairs": pairs, "bend": bend}
