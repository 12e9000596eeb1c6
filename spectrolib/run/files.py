"""Files that are there whole or not at all: written under another name, forced to disk, then given their own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def write_whole(file: Path, write: Callable[[Path], object]) -> None:
    """Write a file whole or not at all; ``write`` is given the path to write to, of the same suffix.

    Raises:
        OSError: if it cannot be written; it names the file, and nothing of it is left.
    """
    part = part_of(file)
    try:
        write(part)
        settle(part, file)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror or str(error), str(file)) from error


def part_of(file: Path) -> Path:
    """The other name under which a file is written: ``a.part.npz`` for ``a.npz``."""
    return file.with_name(f"{file.stem}.part{file.suffix}")


def settle(part: Path, file: Path) -> None:
    """Force to disk what was written under another name, then give it its name."""
    with part.open("rb+") as written:
        os.fsync(written.fileno())
    os.replace(part, file)


@contextmanager
def only_writer(file: Path, place: str | Path) -> Iterator[None]:
    """Be the one process that writes at ``place``: the system locks a file there for as long as the process lives.

    Where the system or the disk knows no locks, nothing is held.

    Raises:
        ValueError: if another process holds it.
    """
    with file.open("rb") as held:
        try:
            import fcntl

            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another process is writing to {place}: wait for it, or name another folder") from None
        except (ImportError, OSError):
            pass
        yield


@contextmanager
def refusing(place: str | Path) -> Iterator[None]:
    """Turn the system's error on writing to ``place`` into a ValueError that says so."""
    try:
        yield
    except OSError as error:
        raise ValueError(f"{place} cannot be written: {error.strerror or error}") from error
