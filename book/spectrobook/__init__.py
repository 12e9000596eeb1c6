"""What the chapters, the benchmarks and the remaking of shipped files need, and a measurement does not."""

import functools
import json
from pathlib import Path

DATA = Path(__file__).parent / "data"
"""Measured numbers that the chapters read: each was made by `python -m spectrobook NAME`."""


@functools.cache
def shipped_table(name: str) -> dict:
    """What ``data/NAME.json`` holds. Shared: do not change it."""
    return json.loads((DATA / f"{name}.json").read_text(encoding="utf-8"))
