"""Files that are there whole or not at all: written under another name, forced to disk, then given their own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def write_whole(file: Path, write: Callable[[Path], object]) -> None:
    """Write a file whole or not at all; ``write`` is given the path to write to, of the same suffix.

    Raises:
        OSError: if it cannot be written.
    """
    part = part_of(file)
    write(part)
    settle(part, file)


def part_of(file: Path) -> Path:
    """The other name under which a file is written: ``a.part.npz`` for ``a.npz``."""
    return file.with_name(f"{file.stem}.part{file.suffix}")


def settle(part: Path, file: Path) -> None:
    """Force to disk what was written under another name, then give it its name."""
    with part.open("rb+") as written:
        os.fsync(written.fileno())
    os.replace(part, file)


@contextmanager
def refusing(place: str | Path) -> Iterator[None]:
    """Turn the system's error on writing to ``place`` into a ValueError that says so."""
    try:
        yield
    except OSError as error:
        raise ValueError(f"{place} cannot be written: {error.strerror or error}") from error
