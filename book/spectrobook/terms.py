"""The two-chain value in its three terms, and what share each has in the numbers that are used.

With g the rise of the mean loss, d a token's excess loss, C the restricted and F the unrestricted chain,

    two chains = -Cov_C(g, d)  -  <g>_C <d>_C  +  <g>_C <d>_F,

exactly, for any draws. Standardising is linear once the columns' scales are given, so standardised rows are sums of
three as well. A term's share is its covariance with the sum over the sum's variance: shares add up to one, and a term
that works against the others has a negative one.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float
from numpy import ndarray

Table = Float[ndarray, "tokens components"]


def two_chain_terms(
    covariance: Table, rise: Float[ndarray, " components"], restricted: Table, full: Float[ndarray, " tokens"]
) -> dict[str, Table]:
    """The terms; their sum is the two-chain value. ``covariance`` is Cov_C(g, d), ``full`` is <d>_F."""
    return {
        "covariance": -covariance,
        "restricted moment": -rise * restricted,
        "unrestricted moment": rise * full[:, None],
    }


def standardised_terms(terms: Mapping[str, Table]) -> dict[str, Table]:
    """What each term adds to the standardised rows."""
    scale = sum(terms.values()).std(axis=0)
    rows = {name: (values - values.mean(axis=0)) / scale for name, values in terms.items()}
    return {name: values - values.mean(axis=1, keepdims=True) for name, values in rows.items()}


def column_shares(terms: Mapping[str, Table]) -> dict[str, Float[ndarray, " components"]]:
    """Share of each term in the variance of each column."""
    whole = _centred(sum(terms.values()))
    return {name: (_centred(values) * whole).sum(axis=0) / (whole**2).sum(axis=0) for name, values in terms.items()}


def table_shares(terms: Mapping[str, Table]) -> dict[str, float]:
    """Share of each term in the variance of the whole table."""
    whole = _centred(sum(terms.values()))
    return {name: float((_centred(values) * whole).sum() / (whole**2).sum()) for name, values in terms.items()}


def _centred(values: Table) -> Table:
    return values - values.mean(axis=0)


def relative_widths(terms: Mapping[str, Table]) -> Float[ndarray, " components"]:
    """How many times the restricted moment is as wide over tokens as the covariance."""
    return np.asarray(terms["restricted moment"]).std(axis=0) / np.asarray(terms["covariance"]).std(axis=0)
