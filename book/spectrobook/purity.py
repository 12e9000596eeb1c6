r"""Do the nearest neighbours of a token share its reason?

*Purity* is the part of a token's k nearest neighbours that were produced for the same reason. It means something only
beside what rows would show that know nothing of the susceptibility, so this module keeps every draw of small chains and
makes from them

* the rows proper: one-chain and two-chain susceptibilities, and the first moment m_C[d];
* the same rows with the observable g permuted over the draws: whatever is left in them is not a covariance with g.

Both see the same fluctuations of the same losses. A row of covariances, -Cov(g, d_xy) for each component, is linear in
the fluctuations of d_xy, with weights that the draws of g set; permuting g only changes the weights. So rows of tokens
whose losses fluctuate together are close whatever the observable: their distance is governed by the Bayesian
influence kernel Cov(d_xy, d_x'y').

Purity and its controls are ours, not the paper's.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from spectrolib.estimator import standardise
from spectrolib.model.components import FULL, names
from spectrolib.model.engine import groups
from spectrolib.model.loading import LanguageModel, engine_of, load_model
from spectrolib.posterior import Settings, stable_seed
from spectrolib.run.readings import readings
from spectrolib.text.corpus import Windows

from . import language as planted

ROWS = ("one_chain", "two_chain", "moment")
KINDS = ("all", "other", "same")
"""Who may be a neighbour: every token; those that differ in the token and in the one before; those that are the same
token after another one."""


# ---- every draw


@dataclass(frozen=True)
class Fluctuations:
    """Every draw of small chains: what `measure` sums up and forgets."""

    components: tuple[str, ...]
    rise: Float[ndarray, "components chains draws"]
    """g = L(w) - L(w*), with L the mean over the probe tokens, nats."""
    excess: Float[ndarray, "components chains draws tokens"]
    """d_xy = l_xy(w) - L(w), relative to its value at w*, nats."""
    full: Float[ndarray, "chains draws tokens"]
    """d_xy along the unrestricted chains."""

    def take(self, *, chains: slice = slice(None), draws: slice = slice(None)) -> Fluctuations:
        """Some of the chains and of the draws."""
        return Fluctuations(
            self.components,
            self.rise[:, chains, draws],
            self.excess[:, chains, draws],
            self.full[chains, draws],
        )


def fluctuations(
    model: LanguageModel, sampling: Windows, probe: Windows, settings: Settings, components: Sequence[str] = ()
) -> Fluctuations:
    """Run the chains of every component, and the unrestricted ones, and keep every draw: for small models.

    The chains are those of `measure`: the same engine, sampler and seeds.

    Raises:
        ValueError: for coupled chains. Halves of the chains must be independent, and g is permuted over draws of one
            posterior, each as good as any other: mirrored twins are not the one, and tilted pairs not the other.
        ChainError: if a loss is not finite, or a chain is no longer local.
    """
    if settings.tilt or settings.antithetic:
        raise ValueError(
            "every draw must be of one posterior and an independent chain, got coupled ones (tilt "
            f"{settings.tilt:g}, antithetic {settings.antithetic}): take settings.plain()"
        )
    engine = engine_of(model)
    components = tuple(components) or tuple(names(engine.shape))
    tokens = probe.ids[:, 1:].size
    kept = np.empty((len(components) + 1, settings.chains, settings.draws, tokens), dtype=np.float32)
    rise = np.empty(kept.shape[:3])
    order = {name: i for i, name in enumerate([*components, FULL])}
    for together in groups(list(order)):
        rows = [order[name] for name in together]
        for k in range(settings.chains):
            for reading in readings(engine, together, k, settings, sampling=sampling, probe=probe):
                change, index = reading.change, reading.draw.index
                rise[rows, k, index] = change.mean(dim=1)
                kept[rows, k, index] = change - change.mean(dim=1, keepdim=True)
    return Fluctuations(components, rise[:-1], kept[:-1], kept[-1])


Rows = Literal["one_chain", "two_chain", "moment"]


def susceptibilities(
    fluctuations: Fluctuations, rows: Rows, rng: np.random.Generator | None = None
) -> Float[ndarray, "tokens components"]:
    """Estimates from all draws, chains pooled, as `estimator` has them; ``moment`` is the restricted mean of d alone.

    Args:
        rng: permutes g over the draws of each component first: the permuted observable.

    Raises:
        ValueError: for rows of an unknown name.
    """
    if rows not in ROWS:
        raise ValueError(f"rows must be one of {ROWS}, got {rows!r}")
    g = fluctuations.rise.reshape(len(fluctuations.components), -1)
    d = fluctuations.excess.reshape(*g.shape, -1)
    if rng is not None:
        g = rng.permuted(g, axis=1)
    moment = d.mean(axis=1, dtype=np.float64)
    if rows == "moment":
        return moment.T
    mean = g.mean(axis=1, keepdims=True)
    covariance = np.einsum("cn,cnt->ct", (g - mean).astype(np.float32), d) / g.shape[1]
    if rows == "one_chain":
        return -covariance.T.astype(np.float64)
    unrestricted = fluctuations.full.reshape(-1, d.shape[-1]).mean(axis=0, dtype=np.float64)
    return -(covariance + mean * (moment - unrestricted)).T


def influence(fluctuations: Fluctuations) -> Float[ndarray, "tokens axes"]:
    """Rows whose distances are those of the influence kernel, Σ_C Cov_C(d_xy, d_x'y') / (mean variance of C).

    They hold every fluctuation of d and no observable at all.
    """
    d = fluctuations.excess.reshape(len(fluctuations.components), -1, fluctuations.excess.shape[-1])
    d = d - d.mean(axis=1, keepdims=True)
    return np.concatenate(d / d.std(axis=(1, 2), keepdims=True), axis=0).T


# ---- purity


def allowed(
    kind: Literal["all", "other", "same"], token: Int[ndarray, " tokens"], previous: Int[ndarray, " tokens"]
) -> Bool[ndarray, "tokens tokens"]:
    """Who may be whose neighbour (`KINDS`); nobody is its own.

    Raises:
        ValueError: for an unknown kind.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {KINDS}, got {kind!r}")
    same, after_same = token[:, None] == token, previous[:, None] == previous
    others = ~np.eye(len(token), dtype=bool)
    return others & {"all": others, "other": ~same & ~after_same, "same": same & ~after_same}[kind]


def neighbours(
    vectors: Float[ndarray, "tokens axes"], k: int, may: Bool[ndarray, "tokens tokens"]
) -> Int[ndarray, "tokens k"]:
    """The k nearest neighbours, in no order, among those that ``may``; -1 where fewer than 2k may."""
    vectors = np.asarray(vectors, dtype=np.float64)
    square = (vectors**2).sum(axis=1)
    distance = np.where(may, square[:, None] + square - 2 * vectors @ vectors.T, np.inf)
    nearest = np.argpartition(distance, k - 1, axis=1)[:, :k]
    return np.where(may.sum(axis=1)[:, None] >= 2 * k, nearest, -1)


def purity(nearest: Int[ndarray, "tokens k"], reasons: Int[ndarray, " tokens"]) -> Float[ndarray, " tokens"]:
    """Part of each token's neighbours with its reason; NaN where it has none."""
    share = (reasons[nearest] == reasons[:, None]).mean(axis=1)
    return np.where(nearest[:, 0] >= 0, share, np.nan)


def chance(reasons: Int[ndarray, " tokens"], may: Bool[ndarray, "tokens tokens"], k: int) -> Float[ndarray, " tokens"]:
    """The purity of neighbours taken at random among those that may; NaN as in `purity`."""
    count = may.sum(axis=1)
    share = (may & (reasons[:, None] == reasons)).sum(axis=1) / np.maximum(count, 1)
    return np.where(count >= 2 * k, share, np.nan)


def interval(
    values: Float[ndarray, " tokens"], windows: Int[ndarray, " tokens"], *, level: float = 0.95, seed: int = 0
) -> tuple[float, float, float]:
    """Mean over tokens, and its bootstrap interval over windows: tokens of one window are not independent."""
    good = np.isfinite(values)
    total = np.bincount(windows[good], values[good])
    count = np.bincount(windows[good])
    total, count = total[count > 0], count[count > 0]
    draws = np.random.default_rng(seed).multinomial(len(total), np.full(len(total), 1 / len(total)), size=2000)
    low, high = np.quantile(draws @ total / (draws @ count), [(1 - level) / 2, (1 + level) / 2])
    return float(total.sum() / count.sum()), float(low), float(high)


# ---- a probe whose reasons are known, and everything that is asked of one measurement


@dataclass(frozen=True)
class Probe:
    """Probe windows of a planted language, and those of their tokens whose reason is clear.

    A token is kept if it was drawn for one of the six reasons that look at the context, and if somebody who knows the
    language would say so with probability ``CLEAR``.
    """

    windows: Windows
    kept: Int[ndarray, " tokens"]
    """Where they stand among all predicted tokens."""
    token: Int[ndarray, " tokens"]
    previous: Int[ndarray, " tokens"]
    reason: Int[ndarray, " tokens"]
    """Index into `language.REASONS`."""
    window: Int[ndarray, " tokens"]


CLEAR = 0.9


def probe(language: planted.Language, windows: int, seed: int) -> Probe:
    """A probe drawn from a language, in windows of `language.LENGTH` tokens."""
    text, labels = planted.draw(language, windows, planted.LENGTH, seed)
    sure = planted.responsibility(language, text).reshape(labels.size, -1)
    reason = labels.ravel().astype(int)
    clear = (reason < planted.START) & (sure[np.arange(labels.size), reason] >= CLEAR)
    kept = np.flatnonzero(clear)
    return Probe(
        text,
        kept,
        text.ids[:, 1:].ravel()[kept],
        text.ids[:, :-1].ravel()[kept],
        reason[kept],
        kept // labels.shape[1],
    )


K = 5
"""Neighbours that a purity is made of."""
VARIANTS = ("one_chain", "one_chain permuted", "two_chain", "two_chain permuted", "moment", "influence")


def vectors(
    found: Fluctuations, probe: Probe, rows: Rows, rng: np.random.Generator | None = None
) -> Float[ndarray, "tokens components"]:
    """Standardised rows of the kept tokens; see `susceptibilities`."""
    return standardise(susceptibilities(found, rows, rng)[probe.kept])


def study(found: Fluctuations, probe: Probe, *, permutations: int = 20, seed: int = 0) -> dict[str, ndarray]:
    """Purities of the rows of one measurement and of their controls.

    Returns:
        ``purity``: (variants, kinds, tokens), for the kept tokens; of permuted rows the mean over permutations.
        ``permuted``: (one and two chains, kinds, permutations), the mean purity of each permutation.
        ``shared``: part of the K nearest neighbours that rows of one half of the chains share with rows of the other
            half (``one_chain``, ``two_chain``, ``moment``), then that one-chain rows share with permuted rows of the
            same draws. NaN with one chain.
        ``reliability``: median over components of the correlation between the columns of the two halves, for `ROWS`.
    """
    rng = np.random.default_rng(seed)
    may = [allowed(kind, probe.token, probe.previous) for kind in KINDS]

    def pure(rows: ndarray) -> Float[ndarray, "kinds tokens"]:
        return np.stack([purity(neighbours(rows, K, m), probe.reason) for m in may])

    table = {rows: pure(vectors(found, probe, rows)) for rows in ROWS}
    table["influence"] = pure(influence(found)[probe.kept])
    means = []
    for rows in ("one_chain", "two_chain"):
        each = np.stack([pure(vectors(found, probe, rows, rng)) for _ in range(permutations)])
        table[f"{rows} permuted"] = each.mean(axis=0)
        means.append(np.nanmean(each, axis=2).T)
    halves = [found.take(chains=slice(h, None, 2)) for h in (0, 1)] if found.rise.shape[1] > 1 else []
    shared, reliability = np.full(len(ROWS) + 1, np.nan), np.full(len(ROWS), np.nan)
    if halves:
        for i, rows in enumerate(ROWS):
            a, b = (susceptibilities(half, rows)[probe.kept] for half in halves)
            shared[i] = overlap(standardise(a), standardise(b))
            reliability[i] = np.median([np.corrcoef(x, y)[0, 1] for x, y in zip(a.T, b.T, strict=True)])
        shared[-1] = overlap(*(vectors(halves[0], probe, "one_chain", source) for source in (None, rng)))
    return {
        "purity": np.stack([table[name] for name in VARIANTS]),
        "permuted": np.stack(means),
        "shared": shared,
        "reliability": reliability,
    }


def overlap(first: Float[ndarray, "tokens axes"], second: Float[ndarray, "tokens axes"]) -> float:
    """Part of the K nearest neighbours in one set of rows that are among those in the other."""
    may = ~np.eye(len(first), dtype=bool)
    a, b = neighbours(first, K, may), neighbours(second, K, may)
    return float((a[:, :, None] == b[:, None, :]).any(axis=2).mean())


# ---- the measurement that ships with the library

DRAWS = (8, 16, 32, 64)
"""Draws of each chain that purities are made from."""
POSTERIORS = (
    (30.0, 300.0, 64, 0),
    (0.0, 300.0, 64, 0),
    (10.0, 300.0, 32, 0),
    (100.0, 300.0, 32, 0),
    (30.0, 100.0, 32, 0),
    (30.0, 1000.0, 32, 0),
    (30.0, 300.0, 64, 1),
    (0.0, 300.0, 64, 1),
)
"""nβ, γ, draws of each chain, and what is added to the seed. The first is the main one; the last two repeat the first
two with other noise."""
SHIPPED = planted.FOLDER / "purity.npz"


def sampler(nbeta: float, gamma: float, *, chains: int = 4, draws: int, seed: int = 0) -> Settings:
    """Plain SGLD with the same relaxation εγ/2 for every γ; chains with noise and minibatches of their own."""
    return Settings(
        nbeta=nbeta,
        gamma=gamma,
        step_size=0.4 / gamma,
        preconditioner="none",
        batch_size=8,
        chains=chains,
        draws=draws,
        steps_between_draws=4,
        burn_in=12,
        share_batches=False,
        seed=seed,
    )


def shipped_probe(seed: int = 0) -> tuple[Windows, Probe]:
    """Sampling windows and probe of the shipped measurement: text that the model was not trained on."""
    language = planted.Language()
    sampling, _ = planted.draw(language, 256, planted.LENGTH, stable_seed("sampling", seed))
    return sampling, probe(language, 40, stable_seed("probe", seed))


def survey(folder: Path, seed: int = 0, report: Callable[[str], None] = print) -> dict[str, ndarray]:
    """Measure the model in ``folder`` under every posterior, and study each measurement.

    Returns:
        The arrays of `study`, with a first axis for `POSTERIORS` and a second for `DRAWS`, NaN where a posterior has
        fewer; ``by_chain``, the mean purity (posteriors, chains, variants, kinds) of what single chains give; ``rise``,
        g (posteriors, components, chains, draws) in nats; ``rows``, the standardised rows (`ROWS`, tokens, components)
        of the main posterior, and ``shuffled``, its one-chain rows after one permutation of g; ``manifest``, what all
        this was made from, as JSON.
    """
    model, (sampling, asked) = load_model(folder, device="cpu"), shipped_probe(seed)
    studies, by_chain, rises, seconds = [], [], [], []
    for nbeta, gamma, draws, more in POSTERIORS:
        begin, settings = time.process_time(), sampler(nbeta, gamma, draws=draws, seed=seed + more)
        found = fluctuations(model, sampling, asked.windows, settings)
        seconds.append(round(time.process_time() - begin, 1))
        report(f"nβ {nbeta:g}, γ {gamma:g}: mean rise {found.rise.mean():.3f} nats, {seconds[-1]:.0f} s")
        studies.append([study(found.take(draws=slice(n)), asked, seed=seed) for n in DRAWS if n <= draws])
        alone = [
            study(found.take(chains=slice(k, k + 1)), asked, permutations=5, seed=seed) for k in range(settings.chains)
        ]
        by_chain.append([np.nanmean(one["purity"], axis=2) for one in alone])
        rises.append(np.pad(found.rise, ((0, 0), (0, 0), (0, DRAWS[-1] - draws)), constant_values=np.nan))
        if len(studies) == 1:
            rows = np.stack([vectors(found, asked, name) for name in ROWS])
            shuffled = vectors(found, asked, "one_chain", np.random.default_rng(seed))
    arrays = {}
    for key, first in studies[0][0].items():
        arrays[key] = np.full((len(POSTERIORS), len(DRAWS), *first.shape), np.nan, dtype=np.float16)
        for i, row in enumerate(studies):
            arrays[key][i, : len(row)] = np.stack([one[key] for one in row])
    manifest = {
        "model": model.hash,
        "probe": asked.windows.hash,
        "sampling": sampling.hash,
        "components": list(found.components),
        "posteriors": [asdict(sampler(b, g, draws=n, seed=seed + more)) for b, g, n, more in POSTERIORS],
        "draws": DRAWS,
        "neighbours": K,
        "cpu_seconds": seconds,
        "versions": {"spectrolib": version("spectrolib"), "torch": torch.__version__, "numpy": np.__version__},
    }
    return arrays | {
        "by_chain": np.array(by_chain, dtype=np.float32),
        "rise": np.array(rises, dtype=np.float32),
        "rows": rows.astype(np.float16),
        "shuffled": shuffled.astype(np.float16),
        "manifest": np.array(json.dumps(manifest)),
    }


def shipped() -> tuple[dict, dict[str, ndarray]]:
    """Manifest and arrays (`survey`) of the measurement that ships with the library."""
    with np.load(SHIPPED) as stored:
        arrays = {name: stored[name].astype(np.float64) for name in stored.files if name != "manifest"}
        return json.loads(str(stored["manifest"])), arrays


def remake(folder: str | Path, seed: int = 0) -> Path:
    """Train the model of the planted language, export it into a folder, and measure it: about ten minutes.

    A model that the folder holds already is measured as it is.
    """
    folder, language = Path(folder), planted.Language()
    if not (folder / "README.md").exists():  # which is written last
        recipe = planted.recipe(language, seed=seed)
        planted.export(language, recipe, *planted.train(language, recipe), folder)
    np.savez_compressed(folder / SHIPPED.name, **survey(folder, seed))
    return folder
