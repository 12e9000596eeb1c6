"""Pictures of tables: what is drawn where, in the order of the network, without one label over another."""

import itertools

import matplotlib.pyplot as plt
import numpy as np
import pytest

from spectrobook import figures, pictures

NAMES = ("embed", "l0h0", "l0h1", "l0 mlp", "l1h0", "l1h1", "l1 mlp", "unembed")
rng = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def style():
    with plt.rc_context():
        figures.use_style()
        yield


def shown(labels):
    return [label.get_text() for label in labels]


def overprinted(labels) -> list[tuple[str, str]]:
    """Pairs of texts whose boxes overlap."""
    boxes = [(label.get_text(), label.get_window_extent()) for label in labels if label.get_text()]
    return [(one, other) for (one, a), (other, b) in itertools.combinations(boxes, 2) if a.overlaps(b)]


def test_a_box_for_each_component_in_its_place():
    fig = pictures.component_boxes(dict.fromkeys(NAMES, 1500), layers=2, heads=2)
    texts = {text.get_text().split("  ")[0]: text.get_position() for text in fig.axes[0].texts}
    assert set(texts) == set(NAMES)
    assert texts["embed"][1] < texts["l0h0"][1] == texts["l0 mlp"][1] < texts["l1h0"][1] < texts["unembed"][1]
    assert texts["l1h0"][0] < texts["l1h1"][0] < texts["l1 mlp"][0]
    assert fig.axes[0].texts[0].get_text() == "embed  2k"
    fig.canvas.draw()
    assert not overprinted(fig.axes[0].texts)


def test_layers_are_marked_in_the_middle_of_their_components():
    _, ax = plt.subplots()
    ax.set(xlim=(-0.5, 7.5))
    pictures.mark_layers(ax, NAMES)
    assert shown(ax.get_xticklabels()) == ["embed", "0", "1", "unembed"]
    np.testing.assert_allclose(ax.get_xticks(), [0, 2, 5, 7])


def test_groups_of_rows_stand_one_under_the_other():
    vectors = rng.normal(size=(10, len(NAMES)))
    fig = pictures.grouped_rows(vectors, NAMES, {"a": np.array([7, 2]), "b": np.array([0, 1, 9])}, limit=2)
    ax = fig.axes[0]
    np.testing.assert_array_equal(ax.images[0].get_array(), vectors[[7, 2, 0, 1, 9]])
    assert shown(ax.get_yticklabels()) == ["a", "b"]
    np.testing.assert_allclose(ax.get_yticks(), [0.5, 3])
    with pytest.raises(ValueError, match="no groups"):
        pictures.grouped_rows(vectors, NAMES, {}, limit=2)


def test_shares_by_treatment_and_table():
    curves = {"one": np.array([0.9, 0.09, 0.01]), "other": np.array([0.5, 0.3, 0.2])}
    fig = pictures.spectra({"before": curves, "after": curves}, shown=2)
    assert [ax.get_title() for ax in fig.axes] == ["before", "after"]
    for line, shares in zip(fig.axes[1].lines, curves.values(), strict=True):
        np.testing.assert_array_equal(line.get_ydata(), shares[:2])


def test_dots_for_each_column():
    wide = {"one": np.arange(1.0, 9), "other": np.arange(9.0, 1, -1)}
    fig = pictures.by_component({"width": wide, "reliability": wide}, NAMES, logarithmic={"width"})
    top, bottom = fig.axes
    assert (top.get_yscale(), bottom.get_yscale()) == ("log", "linear")
    np.testing.assert_array_equal(bottom.lines[0].get_ydata(), wide["one"])
    assert shown(fig.legends[0].get_texts()) == ["one", "other"]


def test_loadings_and_correlations_are_painted_on_one_scale():
    axes = np.eye(8)[:2]
    fig = pictures.loadings({"one": axes, "other": -axes}, NAMES, {"one": ["1", "2"], "other": ["1", "2"]})
    np.testing.assert_array_equal(fig.axes[1].images[0].get_array(), -axes)
    squares = pictures.correlation_squares({"one": np.eye(8), "other": -np.eye(8)}, NAMES, label="correlation")
    for picture in (fig.axes[:2], squares.axes[:2]):
        assert {ax.images[0].get_clim() for ax in picture} == {(-1, 1)}
    squares.canvas.draw()
    assert not overprinted(squares.axes[0].get_xticklabels())


def test_traces_begin_at_the_trained_weights():
    rises = {"whole": rng.normal(size=(2, 5)), "part": rng.normal(size=(2, 5)), "head": rng.normal(size=(2, 5))}
    fig = pictures.first_steps(rises, 2, notes={"part": ", R-hat 1.0"})
    first = fig.axes[1]
    assert first.get_title() == "part, R-hat 1.0"
    np.testing.assert_allclose(first.lines[0].get_ydata(), [0, *rises["part"][0]])
    assert first.patches[0].get_x() + first.patches[0].get_width() == 2
    assert not fig.axes[3].axison
