"""The installed corpus, on a made-up site-packages folder."""

import random
import re

import pytest

from spectrobook.making import installed
from spectrobook.making.installed import DOMAINS, installed_corpus, split_of
from spectrolib.text.corpus import Document

SOURCE = '''"""Module prose, long enough to count as a paragraph of English for the corpus."""


def area(r):
    """Area of a disc, computed from its radius {i} and explained over enough words to be kept.

    The formula is :math:`\\\\pi r^2`, which everybody knows; \\\\frac{{a}}{{b}} appears here for the look of it.

    >>> area({i})
    3.14

    Another paragraph of prose, number {i}, so that there is something to read for the tests of the library.
    And it has a second line about discs, circles, and other round things that matter to number {i}.
    """
    return 3.14 * r * r
'''
LICENCE = "Permission is granted to use this text, number {i}, in every way one likes. " * 4
SHARED = "A paragraph that all licences share, word for word, and that the corpus takes only once, please. " * 3


def write_distribution(site, name, files, *, version="1.0", licence="MIT"):
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nLicense-Expression: {licence}\n\n"
    files = files | {f"{info}/METADATA": metadata + f"# {name}\n\n" + f"A package called {name} about things. " * 20}
    for path, content in files.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_bytes(content if isinstance(content, bytes) else content.encode())
    (site / info / "RECORD").write_text("".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"]))


def modules(package, count):
    return {f"{package}/m{i}.py": SOURCE.format(i=i) + f"\n# {package} {i}\n" * 20 for i in range(count)}


@pytest.fixture
def site(tmp_path):
    numbers = "\n".join(f"{i},{i * i},{i % 7}" for i in range(200))
    write_distribution(
        tmp_path,
        "alpha",
        modules("alpha", 20)
        | {
            "alpha/tests/test_a.py": "def test_a():\n    assert area(1) == 3.14\n" * 20,
            "alpha/data/table.csv": "a,b,c\n" + numbers,
            "alpha/copy.csv": "a,b,c\n" + numbers + "\n\n",
            "alpha/min.js": "var a=1;" * 1000,
            "alpha/page.js": "function page() {\n  return 1;\n}\n" * 30,
            "alpha/binary.txt": b"\xff\xfe\x00" * 200,
            "alpha/key.yaml": "key: " + "A" * 400 + "\n" + "a: b\n" * 60,
            "alpha/locale/fi/LC_MESSAGES/a.po": 'msgid ""\nmsgstr "header"\n\n'
            + "".join(f'msgid "page {i}"\nmsgstr "sivu numero {i} tässä"\n\n' for i in range(30)),
            "alpha-1.0.dist-info/licenses/LICENSE": f"{SHARED}\n\n{LICENCE.format(i=1)}",
        },
    )
    write_distribution(
        tmp_path,
        "beta",
        modules("beta", 3) | {"beta-1.0.dist-info/LICENSE": f"{SHARED}\n\n{LICENCE.format(i=2)}"},
        licence="BSD-3-Clause",
    )
    write_distribution(tmp_path, "gamma", modules("gamma", 3), licence="GPL-3.0-or-later")
    write_distribution(tmp_path, "delta", modules("delta", 3), licence="Proprietary")
    return tmp_path


@pytest.fixture
def found(site):
    return installed_corpus(site=site, stdlib=False)


def by_name(found, name):
    return {d.domain: d.text for d in found.documents if d.name == name}


def test_only_permissive_distributions_are_read(found):
    assert found.manifest["distributions"] == {"alpha": "1.0", "beta": "1.0"}
    assert found.manifest["skipped"] == {"gamma": "GPL-3.0-or-later", "delta": "Proprietary"}
    assert {d.package for d in found.documents} == {"alpha", "beta"}
    assert {d.licence for d in found.documents} == {"MIT", "BSD-3-Clause"}


@pytest.mark.parametrize("licence", ["LGPL-2.1", "AGPL-3.0", "MIT OR GPL-2.0", "Eclipse Public License"])
def test_copyleft_is_left_out(tmp_path, licence):
    write_distribution(tmp_path, "alpha", modules("alpha", 2), licence="MIT")
    write_distribution(tmp_path, "omega", modules("omega", 2), licence=licence)
    assert installed_corpus(site=tmp_path, stdlib=False).manifest["skipped"] == {"omega": licence}


def test_files_fall_into_their_domains(found):
    names = {(d.domain, d.name) for d in found.documents}
    assert ("python-tests", "alpha/tests/test_a.py") in names
    assert ("javascript", "alpha/page.js") in names
    assert ("readme", "alpha-1.0.dist-info/METADATA") in names
    assert "Metadata-Version" not in by_name(found, "alpha-1.0.dist-info/METADATA")["readme"]
    translations = by_name(found, "alpha/locale/fi/LC_MESSAGES/a.po")["translations"]
    assert translations.splitlines()[0] == "sivu numero 0 tässä" and "page" not in translations


def test_a_module_is_kept_whole_or_taken_apart(found):
    kinds = {name: set(by_name(found, name)) for name in {d.name for d in found.documents if "/m" in d.name}}
    assert {"python"} in kinds.values()
    assert any("docstrings" in k for k in kinds.values())
    assert all(k == {"python"} or k <= {"docstrings", "latex", "doctests"} for k in kinds.values())
    for document in found.documents:
        if document.domain == "docstrings":
            assert ">>>" not in document.text and ":math:" not in document.text and "def " not in document.text


def test_unfit_files_are_left_out(found):
    names = {d.name for d in found.documents}
    assert not names & {"alpha/min.js", "alpha/binary.txt", "alpha/key.yaml"}


def test_nothing_is_taken_twice(found):
    normal = [" ".join(d.text.split()) for d in found.documents]
    assert len(set(normal)) == len(normal)
    tables = {d.name for d in found.documents if d.domain == "tables"}
    assert len(tables & {"alpha/data/table.csv", "alpha/copy.csv"}) == 1
    licences = "\n".join(d.text for d in found.documents if d.domain == "licences")
    assert licences.count(SHARED) == 1
    assert "number 1" in licences and "number 2" in licences


def test_the_corpus_is_deterministic(site, found):
    again = installed_corpus(site=site, stdlib=False)
    assert again.documents == found.documents and again.manifest == found.manifest
    (site / "alpha" / "page.js").write_text("function other() {\n  return 2;\n}\n" * 30)
    changed = installed_corpus(site=site, stdlib=False)
    assert changed.manifest["hash"] != found.manifest["hash"]
    assert changed.manifest["hash_portable"] != found.manifest["hash_portable"]


def test_a_list_of_distributions(site):
    assert {d.package for d in installed_corpus(["Beta"], site=site, stdlib=False).documents} == {"beta"}
    with pytest.raises(ValueError, match="not installed: epsilon"):
        installed_corpus(["beta", "epsilon"], site=site, stdlib=False)
    with pytest.raises(ValueError, match="no text was found"):
        installed_corpus(["gamma"], site=site, stdlib=False)


def test_caps_per_domain_and_distribution(tmp_path, monkeypatch):
    rng = random.Random(0)
    for name in ("alpha", "beta", "gamma", "delta"):
        tables = {f"{name}/{i}.csv": "\n".join(str(rng.random()) for _ in range(50)) for i in range(30)}
        write_distribution(tmp_path, name, tables)
    size = len("\n".join(["0.123456789012345678"] * 50))
    cap, share = 40 * size, 0.3
    monkeypatch.setitem(DOMAINS, "tables", installed.Domain(cap / 1e6, share, ""))
    tables = [d for d in installed_corpus(site=tmp_path, stdlib=False).documents if d.domain == "tables"]
    total = sum(len(d.text) for d in tables)
    assert cap <= total <= cap + size
    for name in ("alpha", "beta", "gamma", "delta"):
        part = sum(len(d.text) for d in tables if d.package == name)
        assert 0 < part <= share * cap + size


def test_splits_are_disjoint_and_complete(site):
    (site / "many.py").touch()
    files = {f"many/{i}.csv": "\n".join(str(i * j) for j in range(100)) for i in range(300)}
    write_distribution(site, "many", files)
    found = installed_corpus(site=site, stdlib=False)
    train, heldout = found.split("train"), found.split("heldout")
    assert set(train) | set(heldout) == set(found.documents) and not set(train) & set(heldout)
    held = [d for d in heldout if d.package == "many"]
    assert 10 <= len(held) <= 60  # 10 % of 300 tables
    assert found.manifest["domains"]["tables"]["heldout"] == sum(
        len(d.text.encode()) for d in heldout if d.domain == "tables"
    )
    with pytest.raises(ValueError, match="unknown split"):
        found.split("test")


def test_the_split_does_not_depend_on_the_text():
    names = [f"package/{i}.py" for i in range(5000)]
    sides = [split_of(Document("one", "python", name=n)) for n in names]
    assert sides == [split_of(Document("two", "python", name=n)) for n in names]
    assert 50 <= sides.count("heldout") <= 160  # 2 %


def test_platform_domains_do_not_touch_the_portable_hash(site, found):
    write_distribution(site, "epsilon", {"epsilon/e.h": "int area(int r);\n" * 40})
    more = installed_corpus(["alpha", "beta", "epsilon"], site=site, stdlib=False)
    assert more.manifest["domains"]["c"]["platform"] is True
    (site / "epsilon" / "e.h").write_text("long area(long r);\n" * 40)
    other = installed_corpus(["alpha", "beta", "epsilon"], site=site, stdlib=False)
    assert other.manifest["hash_portable"] == more.manifest["hash_portable"]
    assert other.manifest["hash"] != more.manifest["hash"]


def test_real_distributions():
    found = installed_corpus(["click", "rich"], stdlib=False)
    assert {"python", "docstrings", "licences", "readme"} <= set(found.manifest["domains"])
    assert not any(re.search(r"\bGPL\b", d.licence) for d in found.documents)
