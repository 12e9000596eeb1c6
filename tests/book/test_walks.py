"""The small cloud and its pictures: the walk against the exact solution, and panels that show what was computed."""

import numpy as np
import pytest
from matplotlib.colors import to_rgba

from spectrobook import walks
from spectrolib.clustering import approximate_pagerank, conductance_clusters, exact_pagerank, sweep_cut
from spectrolib.graph import knn_graph
from spectrolib.reading.marks import BLUE, VERMILION


@pytest.fixture(scope="module")
def cloud():
    return walks.small_cloud(seed=0)


@pytest.fixture(scope="module")
def graph(cloud):
    return knn_graph(cloud.points, k=6, symmetrise="union")


def colours_of(ax) -> np.ndarray:
    """Of the points that are drawn."""
    return next(c for c in ax.collections if type(c).__name__ == "PathCollection").get_facecolors()


def test_groups_are_tight_and_lie_apart(cloud):
    assert np.bincount(cloud.truth + 1).tolist() == [90, 16, 12]
    first, second = (cloud.points[cloud.truth == group] for group in (0, 1))
    assert first.std(axis=0).max() < 0.4 and np.linalg.norm(first.mean(axis=0) - second.mean(axis=0)) > 5
    np.testing.assert_array_equal(walks.small_cloud(seed=0).points, cloud.points)


def test_steps_keep_the_walker_whole_and_lead_to_the_exact_solution(cloud, graph):
    p = np.eye(len(cloud.points))[100]
    for _ in range(2000):
        p = walks.walk_step(graph, p, 100, 0.02)
    assert p.sum() == pytest.approx(1)
    np.testing.assert_allclose(p, exact_pagerank(graph, 100, 0.02), atol=1e-9)


def test_a_sweep_is_drawn_with_its_least_and_the_edges_that_it_cuts(cloud, graph):
    sweep = sweep_cut(graph, *approximate_pagerank(graph, 100, alpha=0.02, tol=1e-7))
    fig = walks.sweep_figure(graph, cloud.points, {"from the group": (100, sweep)})
    top, bottom = fig.axes
    curve, dot = top.lines
    np.testing.assert_allclose(curve.get_ydata(), sweep.profile)
    assert dot.get_xdata()[0] == len(sweep.nodes) and dot.get_ydata()[0] == pytest.approx(min(sweep.profile))
    blue = (colours_of(bottom) == to_rgba(BLUE)).all(axis=1)
    assert np.flatnonzero(blue).tolist() == sorted(sweep.nodes.tolist())
    cut = [
        c for c in bottom.collections if len(c.get_edgecolor()) and tuple(c.get_edgecolor()[0]) == to_rgba(VERMILION)
    ]
    inside = np.isin(np.arange(len(cloud.points)), sweep.nodes)
    assert len(cut[0].get_segments()) == graph[inside][:, ~inside].nnz


def test_the_peel_is_drawn_in_the_order_in_which_clusters_were_found(cloud, graph):
    peel = conductance_clusters(graph, alpha=0.02, min_size=8, max_size=40, method="literal", seed=0)
    fig = walks.peel_figure(graph, cloud.points, peel)
    assert len(fig.axes) == len(peel.sizes) + 1
    for ax, cluster in zip(fig.axes, np.argsort(peel.order), strict=False):
        blue = (colours_of(ax) == to_rgba(BLUE)).all(axis=1)
        assert np.flatnonzero(blue).tolist() == peel.members(cluster).tolist()
    assert fig.axes[-1].get_title() == "what is left"


def test_each_graph_and_each_moment_has_its_panel(cloud, graph):
    both = {"union": graph, "mutual": knn_graph(cloud.points, k=6, symmetrise="mutual")}
    titles = [ax.get_title() for ax in walks.graphs_figure(both, cloud).axes]
    assert titles == [f"{kind}: {one.nnz // 2} edges" for kind, one in both.items()]
    settled = exact_pagerank(graph, 100, 0.02)
    fig = walks.walk_figure(graph, cloud.points, {"after 0": np.eye(len(settled))[100], "for ever": settled}, 100)
    assert [ax.get_title() for ax in fig.axes] == ["after 0", "for ever"]
