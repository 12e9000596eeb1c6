"""The house: imports run downward and in no circle, folders hold what they should, every module has its tests."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import spectrolib

ROOT = Path(__file__).resolve().parents[1]
HEART = {"posterior", "estimator", "modes", "graph", "pagerank", "peeling", "clustering"}
FLOORS = [{"heart", "text"}, {"model", "exact"}, {"checks"}, {"run"}, {"reading", "dictionaries"}, {"cli"}, {"book"}]
"""From the ground. Wings of one floor do not import each other."""
CROSSING = "coupled families kinds parity paper_path paper_to_code notebooks pages public ground architecture".split()
"""Tests of what several modules do together."""


def modules(root: Path) -> dict[str, Path]:
    """Source files by their dotted names."""
    packages = (("spectrolib", root / "spectrolib"), ("spectrobook", root / "book" / "spectrobook"))
    files = {(name, folder): sorted(folder.rglob("*.py")) for name, folder in packages}
    dotted = lambda name, parts: ".".join([name, *parts]).removesuffix(".__init__")  # noqa: E731
    return {
        dotted(name, file.relative_to(folder).with_suffix("").parts): file
        for (name, folder), found in files.items()
        for file in found
    }


def wing(module: str) -> str:
    package, *rest = module.split(".")
    if package == "spectrobook":
        return "book"
    return rest[0] if rest and rest[0] not in HEART else "heart"


def imports(module: str, known: dict[str, Path]) -> set[str]:
    """Our modules that a module imports: at the top, inside functions and for type checkers alike."""
    found, package = set(), module if known[module].stem == "__init__" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(known[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
            base = ".".join(part for part in (above, node.module) if part)
            inside = {f"{base}.{alias.name}" for alias in node.names}
            found |= (inside & set(known)) | ({base} if inside - set(known) else set())
    return (found & set(known)) - {module}


def faults(root: Path) -> list[str]:
    """What is wrong with a tree of sources and tests, in words."""
    known = modules(root)
    graph = {module: imports(module, known) for module in known}
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    wrong = [f"{module} is in no wing" for module in known if wing(module) not in floor]
    for module, others in graph.items():
        for other in sorted(others):
            own, its = wing(module), wing(other)
            if other != "spectrolib" and own != its and floor.get(own, -1) <= floor.get(its, -1):
                wrong.append(f"{module} imports {other}, which is not below it")
            if other == "spectrolib" and own == "heart":
                wrong.append(f"{module} imports {other}")
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        wrong.append("a circle: " + " -> ".join(error.args[1]))

    named = {module for module in known if known[module].stem not in ("__init__", "__main__")}
    places = {module: root / "tests" / place(module) for module in named}
    wrong += [f"{module} has no test: {file.relative_to(root)}" for module, file in places.items() if not file.exists()]
    owned = set(places.values()) | {root / "tests" / part / f"test_{part}.py" for part in map(wing, known)}
    for file in sorted((root / "tests").glob("*/**/test_*.py")):
        folder = file.relative_to(root / "tests").parts[0]
        if folder in floor and file not in owned and file.stem.removeprefix("test_") not in CROSSING:
            wrong.append(f"{file.relative_to(root)} is the test of no module")
    return wrong


def place(module: str) -> str:
    """Where the tests of a module lie, below tests/."""
    *folders, name = module.split(".")[1:]
    return "/".join([*([wing(module)] if not folders or wing(module) == "book" else []), *folders, f"test_{name}.py"])


def test_imports_run_downward_and_every_module_has_its_tests():
    assert faults(ROOT) == []


def test_the_root_holds_the_heart_and_the_wings():
    folder = ROOT / "spectrolib"
    assert {file.stem for file in folder.glob("*.py")} == HEART | {"__init__"}
    wings = set().union(*FLOORS) - {"heart", "book"}
    assert {file.parent.name for file in folder.glob("*/__init__.py")} == wings


def test_short_names_are_of_modules_that_exist():
    targets = [*spectrolib._HOME.values(), *spectrolib._ROOM.values()]
    assert [name for name in targets if f"spectrolib.{name}" not in modules(ROOT)] == []


def test_the_checker_sees_what_it_should(tmp_path):
    files = {
        "spectrolib/__init__.py": "",
        "spectrolib/graph.py": "from .text import corpus",  # the heart and the text stand side by side
        "spectrolib/text/__init__.py": "",
        "spectrolib/text/corpus.py": "def read():\n    from . import lexing",
        "spectrolib/text/lexing.py": "import typing\nif typing.TYPE_CHECKING:\n    from .corpus import read",
        "spectrolib/run/plan.py": "import spectrolib.cli.info\nfrom ..graph import knn_graph",
        "spectrolib/cli/info.py": "",
        "spectrolib/spare/thing.py": "",
        "book/spectrobook/making/neox.py": "from spectrolib.run.plan import Plan",
        **dict.fromkeys(map("tests/{}".format, ["heart/test_graph.py", "text/test_corpus.py", "run/test_plan.py"]), ""),
        **dict.fromkeys(map("tests/{}".format, ["cli/test_info.py", "cli/test_cli.py", "cli/test_old.py"]), ""),
        **dict.fromkeys(map("tests/{}".format, ["book/making/test_neox.py", "spare/test_thing.py"]), ""),
    }
    for name, source in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(source)
    found = faults(tmp_path)
    circle = [line for line in found if line.startswith("a circle: ")]
    assert len(circle) == 1 and {"spectrolib.text.corpus", "spectrolib.text.lexing"} == set(
        circle[0][10:].split(" -> ")
    )
    assert [line for line in found if line not in circle] == [
        "spectrolib.spare.thing is in no wing",
        "spectrolib.graph imports spectrolib.text.corpus, which is not below it",
        "spectrolib.run.plan imports spectrolib.cli.info, which is not below it",
        "spectrolib.text.lexing has no test: tests/text/test_lexing.py",
        "tests/cli/test_old.py is the test of no module",
    ]
