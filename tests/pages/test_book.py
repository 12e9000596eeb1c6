"""The built book, page by page. `make pages` runs this; BOOK_HTML is the folder of the built pages."""

import os
from pathlib import Path

import pagechecks
import pytest

HTML = Path(os.environ.get("BOOK_HTML", "_build/html")).resolve()
PAGES = [
    document.path.relative_to(HTML).as_posix() for document in pagechecks.documents(HTML) if not document.redirects
]


def test_there_are_pages():
    assert (HTML / "index.html").is_file(), f"no book in {HTML}: run `make book`"
    assert len(PAGES) > 4


def test_nothing_comes_from_another_host():
    assert pagechecks.loaded_from_elsewhere(HTML) == []


def test_no_link_is_broken():
    assert pagechecks.broken_links(HTML) == []


def test_every_picture_is_described():
    assert pagechecks.pictures_without_description(HTML) == []


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("width, scheme", [(400, "light"), (1280, "dark")])
def test_a_browser_without_a_network_shows_the_page(chromium, name, width, scheme):
    with chromium.open((HTML / name).as_uri(), width=width, scheme=scheme) as page:
        assert pagechecks.faults_in_browser(page) == []
