"""JSON from elsewhere, read and checked in one place, so that a fault in it gives one line that says what is wrong.

`read_json` reads a file that must hold an object. `Fields` asks an object for numbers, flags, words and tables by name;
what is missing or of another kind is refused by that name.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

POINTER = b"version https://git-lfs.github.com/spec/"
"""How a Git LFS pointer begins: a few lines that stand where a large file should be."""
_REQUIRED = object()


def check_fetched(file: Path) -> None:
    """Raise a ValueError if a file is the Git LFS pointer to itself, as a clone without its large files has it."""
    with file.open("rb") as content:
        if content.read(len(POINTER)) == POINTER:
            raise ValueError(f"{file} is a Git LFS pointer, not the file itself: fetch it with `git lfs pull`")


def read_json(file: Path) -> dict:
    """The object that a JSON file holds.

    Raises:
        ValueError: if the file cannot be read, is no JSON, or holds something else.
    """
    try:
        check_fetched(file)
        found = json.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror or error}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file} must hold a JSON object, {{...}}, and holds {short(found)}")
    return found


@dataclass(frozen=True)
class Fields:
    """The fields of a JSON object, asked for by name and type. A field that is null counts as missing.

    The methods below return a field's value, or ``default`` if it is missing. They raise a ValueError for a field that
    is missing without a default, or that is of another type.
    """

    content: Mapping[str, Any]
    source: str
    """What messages call the object."""
    asked: set[str] = field(default_factory=set)
    """Names that were asked for."""

    def __contains__(self, name: str) -> bool:
        return self.content.get(name) is not None

    def whole(self, name: str, default: Any = _REQUIRED, least: int = 1) -> int:
        """A whole number of at least ``least``."""
        right = lambda value: type(value) is int and value >= least  # noqa: E731
        return self._value(name, default, right, f"a whole number of at least {least}")

    def real(self, name: str, default: Any = _REQUIRED) -> float:
        """A positive number."""
        right = lambda value: type(value) in (int, float) and 0 < value < math.inf  # noqa: E731
        return float(self._value(name, default, right, "a positive number"))

    def flag(self, name: str, default: Any = _REQUIRED) -> bool:
        """True or false."""
        return self._value(name, default, lambda value: type(value) is bool, "true or false")

    def word(self, name: str, default: Any = _REQUIRED) -> str:
        """A text."""
        return self._value(name, default, lambda value: type(value) is str, "a text")

    def words(self, name: str, default: Any = _REQUIRED) -> list[str]:
        """A list of texts."""
        right = lambda value: type(value) is list and all(type(entry) is str for entry in value)  # noqa: E731
        return self._value(name, default, right, "a list of texts")

    def wholes(self, name: str, count: int) -> list[int]:
        """A list of ``count`` whole numbers."""
        right = lambda value: type(value) is list and [type(entry) for entry in value] == [int] * count  # noqa: E731
        return self._value(name, _REQUIRED, right, f"a list of {count} whole numbers")

    def table(self, name: str, default: Any = _REQUIRED) -> Fields:
        """An object inside this one."""
        found = self._value(name, default, lambda value: isinstance(value, Mapping), "an object, {...}")
        return Fields(found, f"{name} in {self.source}")

    def unasked(self) -> Iterator[tuple[str, Any]]:
        """Names and values of the fields that are not null and that no method was asked for."""
        return ((name, value) for name, value in self.content.items() if name not in self.asked and value is not None)

    def _value(self, name: str, default: Any, right, kind: str) -> Any:
        self.asked.add(name)
        value = self.content.get(name)
        if value is None:
            if default is _REQUIRED:
                raise ValueError(f"{self.source} lacks {name!r}")
            return default
        if not right(value):
            raise ValueError(f"{name} is {short(value)} in {self.source}: it must be {kind}")
        return value


def short(value: Any, most: int = 60) -> str:
    """A value as JSON writes it, cut to one short line."""
    text = json.dumps(value, default=str)
    return text if len(text) <= most else text[: most - 3] + "..."
