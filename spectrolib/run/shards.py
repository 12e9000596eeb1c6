"""Shards: stretches of the probe windows that are tasks of their own."""

from __future__ import annotations

import math

Stretch = tuple[int, int]
"""Consecutive windows: the first, and one past the last."""


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
