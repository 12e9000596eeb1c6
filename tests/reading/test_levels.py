"""Levels above clusters: the tree of the paths, and names that say what most clusters of a group share."""

from types import SimpleNamespace

import pytest

from spectrolib.reading.levels import group_name, levels


def card(cluster, path, conditions=(), responses=(), size=10):
    shared = tuple(SimpleNamespace(condition=name) for name in conditions)
    means = tuple(SimpleNamespace(component=name, mean=mean) for name, mean in responses)
    return SimpleNamespace(
        cluster=cluster, path=path, shared=shared, responses=means, size=size, title=f"card {cluster}"
    )


@pytest.fixture
def made():
    return [
        card(0, (0, 0), ["frequent", "noun"], [("l0", -1.0), ("l1", 1.0)], size=100),
        card(1, (0, 0), ["frequent", "noun"], [("l0", -2.0)], size=50),
        card(2, (0, 1), ["frequent"], [("l0", -2.0)]),
        card(3, (1, 2), ["frequent", "verb"], [("l0", 2.0)]),
        card(4, (1, 2), ["frequent"], [("l1", 2.0)]),
        card(5, ()),
    ]


def test_the_tree_holds_every_cluster_that_has_a_path_once(made):
    found = levels(made)
    assert [level.path for level in found] == [(0,), (1,)]
    assert [part.path for level in found for part in level.parts] == [(0, 0), (0, 1), (1, 2)]
    assert [c.cluster for level in found for part in level.parts for c in part.cards] == [0, 1, 2, 3, 4]
    assert [level.size for level in found] == [160, 20]
    assert all(part.parts == () for level in found for part in level.parts)
    assert levels([made[5]]) == () and levels([]) == ()


def test_a_group_is_named_by_what_most_of_it_shares_and_others_less(made):
    every = made[:5]
    assert group_name(every[:3], every) == "noun (2 of 3); expression in l0 (3 of 3)"  # all are frequent everywhere
    assert group_name(every[3:], every) == "such as frequent"  # as all are; one of two is not most
    assert group_name(every[3:4], every) == "card 3"
    apart = [card(6, (), ["verb"], [("l1", 1.0)]), card(7, (), ["verb", "noun"], [("l1", 1.0)]), made[5]]
    assert group_name(apart, apart) == "such as verb, card 5"
