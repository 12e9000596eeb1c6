"""Can a measurement be trusted? Traces of the chains, rules of acceptance, and reliability from split halves.

The rules of acceptance put words into numbers: "good traces rise above L(w*), flatten fast, have no spikes, and agree
between chains". The numbers are ours. A failed rule is a reason to look at the trace, not a verdict: with few draws, or
with many components, some good chain fails by chance.

All functions take the result of `measure.measure`. Where chains run in teams (`spectrolib.posterior`, "Coupled
chains"), "chain" means a team, a draw of it is one of all its members, and its loss rise is their mean. Teams are as
independent of each other as plain chains are. But they measure with a few draws each, and a few draws cannot show
whether a chain has settled: then the numbers that need more are NaN, and the rules give no verdict. Plain chains of the
same posterior (`Settings.plain`) on a few components answer instead.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from ..estimator import ESTIMATORS, Estimator, standardise

# Chains ---------------------------------------------------------------------------------------------------------

LEAST_DRAWS = 8
"""Fewest draws of a chain for R-hat and the rules about traces: with fewer, its parts are too short to compare."""


def r_hat(trace: Float[ndarray, "chains draws"]) -> float:
    """Rank-normalised split R-hat (Vehtari et al. 2021, by arviz): near 1 where the chains agree.

    NaN for one chain, fewer than `LEAST_DRAWS` draws, or a trace that never moves.
    """
    if len(trace) < 2 or not _enough(trace):
        return math.nan
    import arviz

    return float(arviz.rhat(np.asarray(trace), method="rank"))


def effective_draws(trace: Float[ndarray, "chains draws"]) -> float:
    """Bulk effective sample size of all chains together (arviz): independent draws with the same precision.

    NaN for fewer than 12 draws of a chain, which cannot show how they depend on each other, or a trace that never
    moves.
    """
    if trace.shape[1] < 12 or not _enough(trace):
        return math.nan
    import arviz

    return float(arviz.ess(np.asarray(trace), method="bulk"))


def rise_error(trace: Float[ndarray, "chains draws"]) -> float:
    """Standard error of the mean of all draws, from the spread between the chains' means, as a share of that mean.

    It assumes only that chains are independent of each other, so it holds for few draws too. It does not see errors
    that all chains share, such as those of chains that have not settled. NaN for one chain.
    """
    if len(trace) < 2:
        return math.nan
    means = trace.mean(axis=1)
    return float(means.std(ddof=1) / math.sqrt(len(means)) / abs(means.mean()))


def _enough(trace: Float[ndarray, "chains draws"]) -> bool:
    return trace.shape[1] >= LEAST_DRAWS and bool(np.isfinite(trace).all()) and np.ptp(trace) > 0


def convergence(result):
    """R-hat, effective draws and relative error of the loss rise g of every component and of ``full``.

    Returns:
        An `xarray.Dataset` with ``r_hat``, ``effective_draws`` and ``rise_error``, each (sampled,). The first two are
        NaN where chains have too few draws.
    """
    import xarray as xr

    traces = result["loss_rise"].transpose("sampled", "chain", "draw")
    return xr.Dataset(
        {
            "r_hat": ("sampled", [r_hat(trace) for trace in traces.values]),
            "effective_draws": ("sampled", [effective_draws(trace) for trace in traces.values]),
            "rise_error": ("sampled", [rise_error(trace) for trace in traces.values]),
        },
        coords={"sampled": traces["sampled"]},
    )


@dataclass(frozen=True)
class Check:
    """One rule of acceptance, for one component."""

    component: str
    """``all`` where the rule is about the settings."""
    rule: str
    value: float
    low: float
    high: float

    @property
    def passed(self) -> bool | None:
        """None where the value cannot be had: one chain, or too few draws."""
        return None if math.isnan(self.value) else self.low < self.value < self.high

    @property
    def demand(self) -> str:
        """What the rule asks for, in words."""
        if math.isinf(self.high):
            return f"above {self.low:.3g}"
        return f"below {self.high:.3g}" if math.isinf(self.low) else f"{self.low:.3g} to {self.high:.3g}"


DRIFT, SPIKE, R_HAT = 0.5, 8.0, 1.1
FRACTION, RELAXATION = 0.2, (1.2, 5.0)
RULES = {
    "rises": "mean rise of the loss above L(w*), nats",
    "flat": "mean of the last half minus that of the second quarter, over the spread within chains",
    "no spikes": "highest draw after the first quarter, in robust standard deviations above its chain's median",
    "chains agree": "rank-normalised split R-hat of the loss",
    "small steps": "part of its distance to w* that a weight loses in a step, εGγ/2",
    "relaxed draws": "that part times the steps between draws: about 2.4 makes draws nearly independent",
}
"""The rules of `acceptance`, and what number each looks at."""


def acceptance(result) -> list[Check]:
    """The rules of acceptance, one by one, for every component and ``full``; see `RULES`.

    Where there are few draws, the bounds of ``flat`` and ``chains agree`` widen to what 1 in 100 sets of chains of
    independent draws would exceed by chance (Student's t, Fisher's F). ``flat``, ``no spikes`` and ``chains agree``
    need `LEAST_DRAWS` draws, the last one 2 chains; without them they give no verdict. With RMSProp, G is taken at
    1/rms_epsilon, its value for small gradients.
    """
    traces = result["loss_rise"].transpose("sampled", "chain", "draw")
    checks = []
    for name, trace in zip(traces["sampled"].values.tolist(), traces.values, strict=True):
        checks += [
            Check(name, "rises", float(trace.mean()), 0.0, math.inf),
            Check(name, "flat", *_flat(trace)),
            Check(name, "no spikes", _spike(trace), -math.inf, SPIKE),
            Check(name, "chains agree", *_agreement(trace)),
        ]
    return checks + _settings_checks(json.loads(result.attrs["manifest"])["settings"])


def _flat(trace: Float[ndarray, "chains draws"]) -> tuple[float, float, float]:
    from scipy.special import stdtrit

    if not _enough(trace):
        return math.nan, -DRIFT, DRIFT
    draws = trace.shape[1]
    early, late = trace[:, draws // 4 : draws // 2], trace[:, draws // 2 :]
    freedom = late.size - len(late)
    spread = math.sqrt(((late - late.mean(axis=1, keepdims=True)) ** 2).sum() / freedom)
    drift = late.mean() - early.mean()
    bound = max(DRIFT, float(stdtrit(freedom, 0.995)) * math.sqrt(1 / early.size + 1 / late.size))
    return (float(drift / spread) if spread > 0 else math.copysign(math.inf, drift)), -bound, bound


def _spike(trace: Float[ndarray, "chains draws"]) -> float:
    if not _enough(trace):
        return math.nan
    settled = trace[:, trace.shape[1] // 4 :]
    distance = settled - np.median(settled, axis=1, keepdims=True)
    scale = 1.4826 * np.median(np.abs(distance))  # the standard deviation of a normal distribution
    return float(distance.max() / scale) if scale > 0 else math.inf


def _agreement(trace: Float[ndarray, "chains draws"]) -> tuple[float, float, float]:
    from scipy.special import fdtri

    pieces, draws = 2 * len(trace), max(trace.shape[1] // 2, 2)
    chance = math.sqrt((draws - 1 + fdtri(pieces - 1, pieces * (draws - 1), 0.99)) / draws)
    return (r_hat(trace) if _enough(trace) else math.nan), -math.inf, max(R_HAT, chance)


def _settings_checks(settings: dict) -> list[Check]:
    precondition = 1.0 if settings["preconditioner"] == "none" else 1 / settings["rms_epsilon"]
    fraction = settings["step_size"] * precondition * settings["gamma"] / 2
    return [
        Check("all", "small steps", fraction, -math.inf, FRACTION),
        Check("all", "relaxed draws", fraction * settings["steps_between_draws"], *RELAXATION),
    ]


# Reliability ----------------------------------------------------------------------------------------------------


def half_tables(result, estimator: Estimator | None, draws: int | None) -> Float[ndarray, "half token component"]:
    """Susceptibilities from either half of the chains; arguments and errors as in `column_reliability`."""
    if "half_susceptibility" not in result:
        raise ValueError("split halves need at least 2 chains: this measurement has 1")
    estimator = estimator or result.attrs["estimator"]
    if estimator not in ESTIMATORS:
        raise ValueError(f"unknown estimator {estimator!r}: it must be one of {ESTIMATORS}")
    if estimator not in result["estimator"]:
        raise ValueError(f"no split halves by {estimator}: this measurement ran no unrestricted chain")
    blocks = result["block"].values.tolist()
    draws = blocks[-1] if draws is None else draws
    if draws not in blocks:
        raise ValueError(f"no split halves after {draws} draws: there are some after {blocks}")
    halves = result["half_susceptibility"].sel(estimator=estimator, block=draws)
    return halves.transpose("half", "token", "component").values.astype(np.float64)


def spearman_brown(correlation: Float[ndarray, " columns"]) -> Float[ndarray, " columns"]:
    """Reliability of a measurement from the correlation r of its two halves: 2 r / (1 + |r|).

    The formula is Spearman's and Brown's for r >= 0; |r| in place of r keeps negative values, mere noise, above -1.
    """
    return 2 * correlation / (1 + np.abs(correlation))


def column_reliability(result, estimator: Estimator | None = None, *, draws: int | None = None):
    """Reliability of each column: the correlation over tokens of two halves of the chains, corrected to full length.

    Chains (or teams: never parts of one) of even and of odd number form the halves, the restricted and the unrestricted
    ones alike, so the halves share nothing but the windows and, if the setting says so, the order of the minibatches.
    `spearman_brown` takes their correlation to full length: it assumes halves of equal size, so an even number of
    chains.

    Args:
        estimator: the measurement's own by default.
        draws: first draws of each chain to use: a value of the coordinate ``block``; all by default.

    Returns:
        An `xarray.DataArray` over ``component``; NaN for a column that is constant.

    Raises:
        ValueError: for one chain, an unknown estimator, or a number of draws that was not kept.
    """
    import xarray as xr

    first, second = (_scores(half) for half in half_tables(result, estimator, draws))
    values = spearman_brown((first * second).mean(axis=0))
    return xr.DataArray(values, coords={"component": result["component"]}, name="reliability")


def _scores(table: Float[ndarray, "token component"]) -> Float[ndarray, "token component"]:
    centred, spread = table - table.mean(axis=0), table.std(axis=0)
    return np.divide(centred, spread, out=np.full_like(centred, np.nan), where=spread > 0)


def token_reliability(
    result,
    rows: Literal["center", "zscore"] | None = "center",
    estimator: Estimator | None = None,
    *,
    draws: int | None = None,
):
    """Reliability of each token's vector: the cosine of its standardised rows from two halves of the chains.

    Each half holds half of the chains, so this is the reliability of half a measurement: the whole has more. ``rows``
    as in `estimator.standardise`; the rest as in `column_reliability`.

    Returns:
        An `xarray.DataArray` over ``token``.

    Raises:
        ValueError: as `column_reliability` does, and for a column that is constant.
    """
    import xarray as xr

    first, second = (standardise(half, rows=rows) for half in half_tables(result, estimator, draws))
    length = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    cosine = np.divide((first * second).sum(axis=1), length, out=np.zeros_like(length), where=length > 0)
    return xr.DataArray(cosine, dims="token", name="reliability")
