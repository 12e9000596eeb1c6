"""Every function that the pages of reference name is there, under the name that they give."""

import importlib
import inspect
import re
from pathlib import Path

import pytest

import spectrolib

BOOK = Path(__file__).resolve().parents[2] / "book"
NAMED = re.compile(r"`([A-Za-z_]\w*(?:\.\w+)+)[^`]*`")
MODULES = {
    path.stem for package in ("spectrolib", "book/spectrobook") for path in (BOOK.parent / package).rglob("*.py")
}


def names(page: str) -> list[str]:
    """The dotted names in the cells of a page's tables."""
    rows = (line for line in (BOOK / page).read_text(encoding="utf-8").splitlines() if line.startswith("|"))
    return sorted({name for row in rows for name in NAMED.findall(row)})


def has_field(kind: type, name: str) -> bool:
    """Whether objects of a class have what the class has not: a field without a default, or one set at the start."""
    return name in getattr(kind, "__dataclass_fields__", {}) or f"self.{name} = " in inspect.getsource(kind)


def exists(name: str) -> bool:
    """Whether a name, without `spectrolib.` or with `spectrobook.`, is a module or something in one."""
    parts = name.split(".")
    parts = parts if parts[0] == "spectrobook" else ["spectrolib", *parts]
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            if not hasattr(found, part):
                return part == parts[-1] and inspect.isclass(found) and has_field(found, part)
            found = getattr(found, part)
        return cut > 1
    return False


@pytest.mark.parametrize("page", ["paper-to-code.md", "notation.md"])
def test_every_function_named_in_the_tables_is_there(page):
    assert len(names(page)) > 30
    assert [name for name in names(page) if not exists(name)] == []


@pytest.mark.parametrize("page", ["paper-to-code.md", "notation.md"])
def test_no_module_is_named_without_its_wing(page):
    """`tasks.run_task` is nowhere: it is `run.tasks.run_task`."""
    text = (BOOK / page).read_text(encoding="utf-8")
    alone = {word for word in re.findall(r"`(\w+)`", text) if word in MODULES and word not in spectrolib.__all__}
    assert alone <= {"modes", "posterior", "spectrobook", "devinterp"}


def test_what_is_not_there_is_noticed():
    assert exists("posterior.sample")
    assert exists("spectrobook.show.table")
    assert not exists("posterior.nothing")
    assert not exists("nothing.at_all")
    assert not exists("tasks.run_task")
