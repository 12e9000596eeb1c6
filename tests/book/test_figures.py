"""Figures: saved byte for byte, out of the way of quick runs, legible on both grounds, safe with any token."""

import json
from html.parser import HTMLParser

import matplotlib.pyplot as plt
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_rgb

from spectrobook import figures
from spectrolib.reading import marks

HOSTILE = [
    "<script>alert(1)</script>",
    "</div>",
    '" onmouseover="x',
    "&lt;",
    r"\(x^2\)",
    r"\begin{equation}",
    "$$",
    "`",
    "\n",
    "\r\n",
    "\t",
    "\x00",
    "\u202e",
    "\u2028",
    "�",
    " ",
    "",
]


@pytest.fixture(autouse=True)
def no_leftovers(monkeypatch):
    monkeypatch.delenv("SPECTRO_FIGURES", raising=False)
    with plt.rc_context():
        figures.use_style()
        yield


def line(name, **options):
    fig, ax = plt.subplots()
    ax.plot([0, 1, 4])
    return figures.save(fig, name, {"y": np.array([0.0, 1.0, 4.0])}, **options)


def test_a_figure_saved_twice_has_the_same_bytes(tmp_path, monkeypatch):
    saved = []
    for folder in ("one", "two"):
        monkeypatch.setenv("SPECTRO_FIGURES", str(tmp_path / folder))
        path = line("a-line", profile="book", seed=3)
        saved.append({kind: path.with_suffix(kind).read_bytes() for kind in (".svg", ".png", ".json")})
    assert saved[0] == saved[1]
    record = json.loads(saved[0][".json"])
    assert record["data"] == {"y": [0.0, 1.0, 4.0]}
    assert record["settings"] == {"profile": "book", "seed": 3}
    assert record["versions"]["numpy"] == np.__version__
    assert b"\n" not in saved[0][".json"].split(b'"y"')[1].split(b"]")[0], "a list of numbers stays on one line"


def test_only_the_book_profile_writes_in_the_repository(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "root", lambda: tmp_path)
    assert line("a-line", profile="book") == tmp_path / "figures" / "a-line.svg"
    quick = line("a-line", profile="smoke")
    assert quick.is_file()
    assert tmp_path not in quick.parents


def test_the_root_does_not_depend_on_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert (figures.root() / "pyproject.toml").is_file()


@pytest.mark.parametrize("name", ["", "Traces", "../traces", "a/b", "a b", "a.svg"])
def test_names_that_are_no_file_names_are_refused(name):
    with pytest.raises(ValueError, match="lower-case"):
        line(name, profile="smoke")


def test_data_that_json_cannot_hold_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("SPECTRO_FIGURES", str(tmp_path))
    with pytest.raises(ValueError, match="object"):
        figures.save(plt.figure(), "bad", {"x": object()}, profile="book")
    assert not list(tmp_path.iterdir())


def test_numbers_are_kept_to_seven_digits_and_gaps_become_null(tmp_path, monkeypatch):
    monkeypatch.setenv("SPECTRO_FIGURES", str(tmp_path))
    path = figures.save(
        plt.figure(), "numbers", {"x": [1 / 3, float("nan"), np.float32(2), True, None]}, profile="book"
    )
    assert json.loads(path.with_suffix(".json").read_text())["data"]["x"] == [0.3333333, None, 2.0, True, None]


# ---- plots


def test_traces_show_every_chain_and_the_reference():
    losses = np.random.default_rng(0).normal(3.4, 0.01, (4, 50))
    ax = figures.traces(losses, reference=3.3, burn_in=10)
    shown = {text.get_text() for text in ax.get_legend().get_texts()}
    assert shown == {"chain 0", "chain 1", "chain 2", "chain 3", "$L(w^*)$", "burn-in"}
    for chain, drawn in enumerate(ax.get_lines()[:4]):
        assert np.array_equal(drawn.get_ydata(), losses[chain])


# ---- painted text


class Structure(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [key for key, _ in attrs]

    def handle_data(self, data):
        self.text += data


def test_hostile_tokens_stay_text():
    page = Structure(figures.painted_text(HOSTILE, np.linspace(-1, 1, len(HOSTILE)), caption="<b>"))
    assert set(page.tags) == {"div", "span"}
    assert page.tags.count("span") == len(HOSTILE)
    assert set(page.attributes) == {"class", "style", "title"}
    assert "<script>alert(1)</script>" in page.text
    assert "<b>" in page.text
    assert not {"\x00", "\u202e", "\u2028", "\t"} & set(page.text)


@given(st.lists(st.text(max_size=8), max_size=6))
def test_any_tokens_give_one_span_each(tokens):
    page = Structure(figures.painted_text(tokens, np.ones(len(tokens))))
    assert page.tags.count("span") == len(tokens)
    assert page.tags.count("div") == 3


def test_paint_follows_sign_and_size():
    page = figures.painted_text(["a", "b", "c", "d"], np.array([-1.0, 0.5, 0.0, np.nan]))
    opacities = [part.split(")")[0] for part in page.split("rgba(")[1:]]
    assert opacities == ["0,114,178,0.60", "213,94,0,0.30", "213,94,0,0.00", "213,94,0,0.00"]


def luminance(colour):
    """Relative luminance and contrast: WCAG 2.1, section 1.4.3."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


def contrast(one, other):
    bright, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("text, ground", [("#222832", "#ffffff"), ("#ced6dd", "#121212")], ids=["light", "dark"])
@pytest.mark.parametrize("paint", [marks.BLUE, marks.VERMILION])
def test_painted_text_is_readable_on_the_themes_light_and_dark_pages(text, ground, paint):
    for depth in np.linspace(0, figures.DEEPEST, 13):
        mixed = depth * np.array(to_rgb(paint)) + (1 - depth) * np.array(to_rgb(ground))
        assert contrast(mixed, to_rgb(text)) >= 4.5


@pytest.mark.parametrize("painter", [figures.painted_text, figures.painted_figure])
def test_another_number_of_values_than_tokens_is_refused(painter):
    with pytest.raises(ValueError, match="2 tokens need as many values"):
        painter(["a", "b"], np.zeros(3))


def test_the_picture_breaks_lines_where_the_text_does_and_before_it_is_too_wide():
    fig = figures.painted_figure(["def", " f", "\n", "x" * 8, "y" * 8], np.arange(5.0), columns=12)
    rows = [round(text.get_position()[1] - 0.52) for text in fig.axes[0].texts]
    assert rows == [0, 0, 0, 1, 2]
    assert all(patch.get_x() + patch.get_width() <= 12 for patch in fig.axes[0].patches)
    fig.canvas.draw()


def test_the_picture_of_no_tokens_is_empty():
    assert not figures.painted_figure([], np.zeros(0)).axes[0].texts
