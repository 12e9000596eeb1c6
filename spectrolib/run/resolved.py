"""Resolved rows of a result: the channels of all components side by side, from what the tasks left on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy import ndarray

from ..estimator import ResolvedSums, joined, unit_length
from .plan import Plan
from .store import TaskFile

Shards = Sequence[TaskFile]
"""The files of the shards of one chain, in order."""


def from_draws(plan: Plan, chains: Mapping[str, Sequence[Shards]]) -> dict[str, tuple]:
    """The variables and coordinates of resolved rows; none where the plan keeps no channels.

    Args:
        chains: the files of each chain of each component.
    """
    halves = range(min(2, plan.settings.chains))
    if not plan.width:
        return {}
    return labelled(
        plan.components,
        [[_merged(chains[name][half::2], name).rows() for name in plan.components] for half in halves],
    )


def _merged(chains: Sequence[Shards], name: str) -> ResolvedSums:
    first, *rest = (joined([file.resolved(name) for file in shards]) for shards in chains)
    for sums in rest:
        first = first.merge(sums)
    return first


def labelled(names: Sequence[str], halves: Sequence[Sequence[ndarray]]) -> dict[str, tuple]:
    """Variables and coordinates, by name, as `xarray.Dataset` takes them.

    Rows are kept in half precision: an error of 2^-11 of an entry, far below the noise of a sketch or of the draws.

    Args:
        halves: for each half the rows (tokens, channels) of each component. They are scaled here to unit length on
            average; those of a component that moves no loss stay zero.
    """
    most = [max(half[i].shape[1] for half in halves) for i in range(len(names))]
    ends = np.cumsum([0, *most])
    rows = np.zeros((len(halves), len(halves[0][0]), ends[-1]), dtype=np.float16)
    scale = np.empty((len(halves), len(names)))
    for h, half in enumerate(halves):
        for i, (name, own) in enumerate(zip(names, half, strict=True)):
            unit, scale[h, i] = unit_length(name, own) if np.any(own) else (own, 0.0)
            rows[h, :, ends[i] : ends[i] + own.shape[1]] = unit
    return {
        "resolved": (("half", "token", "channel"), rows),
        "resolved_scale": (("half", "component"), scale),
        "channel_component": ("channel", np.repeat(np.array(names, dtype=object), most)),
    }


def rows_of(
    result, components: Sequence[str] | None = None, halves: Sequence[int] | None = None, centre: bool = False
) -> ndarray:
    """The resolved rows of a result, halves side by side: (token, channel), float32.

    Inner products are those of the kernel Σ_C Cov_C(l, l') / σ_C², each component with the same weight, averaged over
    the halves.

    Args:
        centre: whether the mean over tokens is subtracted, which leaves how a token differs from the text. Rows of
            quiet tokens, whose loss hardly moves, then all point away from that mean.
        components: those whose channels count; all by default.
        halves: 0, 1 or both (the default).

    Raises:
        ValueError: if the result holds no channels, or none of such a component or half.
    """
    if "resolved" not in result:
        raise ValueError(
            "the result holds no resolved rows: measure with --channels 512, or with --first-order; "
            "or take the paper's rows (--rows paper)"
        )
    table = result["resolved"]
    chosen = range(table.sizes["half"]) if halves is None else halves
    if not set(chosen) <= set(range(table.sizes["half"])):
        raise ValueError(
            f"the result has {table.sizes['half']} halves of channels, numbered from 0: not {list(chosen)}"
        )
    if components is not None:
        held = table["channel_component"].values.tolist()
        if missing := sorted(set(components) - set(held)):
            raise ValueError(
                f"the result holds no channels of {', '.join(missing)}: it has {', '.join(dict.fromkeys(held))}"
            )
        table = table[:, :, np.isin(held, list(components))]
    parts = [table[half].values.astype(np.float32) for half in chosen]
    rows = np.concatenate(parts, axis=1) / np.float32(np.sqrt(len(parts)))
    return rows - rows.mean(axis=0) if centre else rows
