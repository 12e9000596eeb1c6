"""The checks of the built pages find what they are for. (The book's own pages: `make pages`, tests/pages.)"""

import browser
import pagechecks
import pytest

GOOD = """<!doctype html><meta charset="utf-8"><link rel="stylesheet" href="style.css">
<h1 id="top">Page</h1><p>Text, <a href="#top">here</a>, <a href="other.html#there">there</a> and
<a href="https://example.org/">outside</a>. <code>\\(x\\)</code></p>
<img src="dot.svg" alt="a dot"><img srcset="dot.svg 1x" src="dot.svg" alt="a dot again">"""

FAULTY = """<!doctype html><meta charset="utf-8">
<link rel="stylesheet" href="faulty.css"><link rel="preconnect" href="//fonts.example.org">
<script src="https://cdn.example.org/a.js"></script><style>p {background: url(https://example.org/b.png)}</style>
<div style="width:900px;color:#bbb">wide</div>
<p><a href="#nowhere">a</a><a href="gone.html">b</a><a href="other.html#no">c</a></p>
<img src="dot.svg"><img src="dot.svg" alt="_images/dot.svg"><p>\\(x^2\\)</p><span class="math">y</span>
<mjx-merror>Undefined control sequence</mjx-merror>
<script>console.error("broken"); missing()</script><img src="lost.png" alt="lost">"""


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    html = tmp_path_factory.mktemp("html")
    (html / "good.html").write_text(GOOD)
    (html / "other.html").write_text("<p id='there'>Other</p>")
    (html / "style.css").write_text("p {color: black}")
    (html / "dot.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg' width='1' height='1'/>")
    return html


@pytest.fixture
def faulty(book):
    path = book / "faulty.html"
    path.write_text(FAULTY)
    style = book / "faulty.css"
    style.write_text("@import 'https://example.org/c.css';")
    yield path
    path.unlink()
    style.unlink()


def test_good_pages_have_no_faults(book):
    assert pagechecks.loaded_from_elsewhere(book) == []
    assert pagechecks.broken_links(book) == []
    assert pagechecks.pictures_without_description(book) == []


def test_other_hosts_are_found(book, faulty):
    assert {fault.split()[-1] for fault in pagechecks.loaded_from_elsewhere(book)} == {
        "//fonts.example.org",
        "https://cdn.example.org/a.js",
        "https://example.org/b.png",
        "https://example.org/c.css",
    }


def test_broken_links_are_found(book, faulty):
    assert [fault.split(" leads to ")[1] for fault in pagechecks.broken_links(book)] == [
        "#nowhere: no such anchor",
        "gone.html: no such file",
        "other.html#no: no such anchor",
        "lost.png: no such file",
    ]


def test_pictures_without_description_are_found(book, faulty):
    assert len(pagechecks.pictures_without_description(book)) == 2


needs_browser = pytest.mark.skipif(not browser.executable(), reason="no Chromium on this machine")


@needs_browser
def test_what_a_browser_sees(book, faulty):
    with browser.chromium() as chromium:
        with chromium.open((book / "good.html").as_uri(), width=400) as page:
            assert pagechecks.faults_in_browser(page) == []
        with chromium.open(faulty.as_uri(), width=400) as page:
            faults = "\n".join(pagechecks.faults_in_browser(page))
    for fault in (
        "asks for https://cdn.example.org/a.js",
        "asks for https://example.org/b.png",
        "does not load: net::ERR_FILE_NOT_FOUND",
        "console: broken",
        "missing is not defined",
        "unset mathematics: \\(x^2\\)",
        "wrong mathematics: Undefined control sequence",
        "1 formulas are not set",
        "hardly legible: wide",
        "pixels wider than a window of 400",
    ):
        assert fault in faults
