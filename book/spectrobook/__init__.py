"""What the chapters, the benchmarks and the remaking of shipped files need, and a measurement does not."""

from pathlib import Path

DATA = Path(__file__).parent / "data"
"""Measured numbers that the chapters read: each was made by `python -m spectrobook NAME`."""
