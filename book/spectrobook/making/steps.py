"""One entry made in its run folder, and shipped.

RUNS/NAME/inputs.json    hashes of what it is made of, written first
RUNS/NAME/maker.json     hashes of the code that makes it, written with them
RUNS/NAME/made/          its files, as they lie where they ship
RUNS/NAME/made.json      their hashes, written last
RUNS/NAME/...            whatever work it keeps, to go on after an interruption
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import os
import shutil
import tempfile
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path

from spectrolib.run.store import save_json

from .registry import ENTRIES, ROOT, Entry

HERE = Path(__file__).resolve()
REPOSITORY = HERE.parents[3]


def entry(name: str) -> Entry:
    """The entry of that name.

    Raises:
        ValueError: if there is none; the message lists those there are.
    """
    if name not in ENTRIES:
        raise ValueError(f"nothing called {name!r} ships: it must be one of {', '.join(ENTRIES)}, or all")
    return ENTRIES[name]


def make(name: str, runs: Path, report: Callable[[str], None] = print) -> Path:
    """Make an entry's files in its run folder, or what is left of them; returns the folder that holds them.

    What is finished stays, and so does unfinished work, unless what it is made of has changed since it began.

    Raises:
        ValueError: for an unknown name or what is written by hand; a folder of something else, or one that cannot be
            written; and what the entry itself refuses.
    """
    wanted, folder = entry(name), runs / name
    if wanted.make is None:
        raise ValueError(f"{name} is written by hand, {wanted.check}")
    _begin(name, folder, report)
    made, record = folder / "made", folder / "made.json"
    if record.exists():
        if json.loads(record.read_text()) == hashes(made, wanted.found(made)):
            report("; ".join([f"{name} is made already, in {made}", *_since(name, folder)]))
            return made
        report(f"{name} is made anew: its files are not what they were")
        record.unlink()
        shutil.rmtree(made)
        save_json(folder, MAKER, maker(name))
    made.mkdir(exist_ok=True)
    wanted.make(folder.resolve())  # for programs that run elsewhere
    files = wanted.found(made)
    missing = [pattern for pattern in wanted.files if not any(made.glob(pattern))]
    strangers = sorted({path.relative_to(made) for path in made.rglob("*") if path.is_file()} - set(files))
    if missing or strangers:
        raise ValueError(f"{name} is not made as registered: {', '.join(map(str, missing or strangers))}")
    save_json(folder, record.name, hashes(made, files))
    report(f"{name} is made, in {made}")
    return made


def _begin(name: str, folder: Path, report: Callable[[str], None]) -> None:
    """A run folder for these inputs; of others, it is emptied."""
    record, now = folder / "inputs.json", inputs(name)
    if record.exists() and (before := json.loads(record.read_text())) != now:
        changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
        report(f"{name} is made anew: {', '.join(changed)} changed")
        shutil.rmtree(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{folder} cannot be written: {error.strerror or error}") from error
    if not record.exists():
        if any(folder.iterdir()):
            raise ValueError(f"{folder} holds something else: name another folder")
        save_json(folder, record.name, now)
        save_json(folder, MAKER, maker(name))


MAKER = "maker.json"


def maker(name: str) -> dict[str, str]:
    """A hash of the function that makes an entry, with the constants that it names, and of each file that it runs."""
    make = ENTRIES[name].make
    source = inspect.getsource(make)
    constants = {n: repr(make.__globals__[n]) for n in make.__code__.co_names if n.isupper() and n in make.__globals__}
    found = {"its function": _digest(json.dumps([source, constants]).encode())}
    for file in _files_of(textwrap.dedent(source)):
        found[file.relative_to(REPOSITORY).as_posix()] = _digest(file.read_bytes())
    return found


def _files_of(source: str) -> list[Path]:
    """Files of this package that a function imports, and programs that it names."""
    found: set[Path] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.level:
            found.add((HERE.parents[node.level - 1] / (node.module or "").replace(".", "/")).with_suffix(".py"))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("benchmarks/"):
            place = REPOSITORY / node.value
            found |= set(place.rglob("*.py")) if place.is_dir() else {place}
    return sorted(file for file in found if file.is_file())


def _since(name: str, folder: Path) -> list[str]:
    """What of the code that makes an entry has changed since it was made, in words; nothing if that is not known."""
    record = folder / MAKER
    if not record.exists():  # of an earlier version
        return []
    before, now = json.loads(record.read_text()), maker(name)
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    return [f"since then {', '.join(changed)} changed: delete {folder} to make it anew"] if changed else []


def inputs(name: str) -> dict[str, str]:
    """A hash of all that ships of each entry that this one needs, and of the other files that it reads."""
    asked = ENTRIES[name]
    needed = {need: (ENTRIES[need].home, ENTRIES[need].found(ENTRIES[need].home)) for need in asked.needs}
    if asked.reads:
        paths = {path for pattern in asked.reads for path in ROOT.glob(pattern) if path.is_file()}
        needed["sources"] = ROOT, sorted(path.relative_to(ROOT) for path in paths)
    return {key: _digest(json.dumps(hashes(*place)).encode()) for key, place in needed.items()}


def hashes(folder: Path, files: Iterable[Path]) -> dict[str, str]:
    """Of files in a folder, by their paths there."""
    return {path.as_posix(): _digest((folder / path).read_bytes()) for path in files}


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def ship(name: str, runs: Path) -> Path:
    """Put the made files of an entry in place of those that ship, all of them or none; returns where.

    Those that ship and are made no more are removed.

    Raises:
        ValueError: if they are not made, or cannot be written.
    """
    wanted, made = entry(name), runs / name / "made"
    if not (runs / name / "made.json").exists():
        raise ValueError(f"{name} is not made in {runs / name}: python -m spectrobook {name} makes it")
    new, old = wanted.found(made), wanted.found(wanted.home)
    try:
        wanted.home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".ship-", dir=wanted.home.parent) as beside:
            fresh, aside = Path(beside, "fresh"), Path(beside, "aside")
            for path in new:
                (fresh / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(made / path, fresh / path)
            away = [(wanted.home / path, aside / path) for path in old]
            _move(away + [(fresh / path, wanted.home / path) for path in new])
    except OSError as error:
        raise ValueError(f"{wanted.home} cannot be written: {error.strerror or error}") from error
    return wanted.home


def _move(moves: Iterable[tuple[Path, Path]]) -> None:
    """Rename files, all of them or none."""
    done: list[tuple[Path, Path]] = []
    try:
        for source, target in moves:
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(source, target)
            done.append((source, target))
    except BaseException:
        for source, target in reversed(done):
            os.replace(target, source)
        raise
