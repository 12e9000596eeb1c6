"""Shards: stretches of the probe windows that are tasks of their own."""

from __future__ import annotations

import math

Stretch = tuple[int, int]
"""Consecutive windows: the first, and one past the last."""


def cut(first: int, end: int, windows: int, rows: int, shards: int) -> list[Stretch]:
    """Cut ``first`` to ``end`` into stretches, none longer than if all ``windows`` were cut into ``shards`` equal ones.

    They begin where a pass of the engine begins; an incomplete pass at the end joins the last one. So a window shares
    its pass with the same windows however the text is cut. The last bits of a matrix product depend on its size, and
    in this way losses are the same to the last bit.

    Args:
        rows: windows in a pass.
    """
    passes = max(1, (end - first) // rows)
    longest = math.ceil(max(1, windows // rows) / shards)
    starts = [first + rows * done for done in range(0, passes, longest)]
    return list(zip(starts, [*starts[1:], end], strict=True))
