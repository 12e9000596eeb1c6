"""What ships of the clusters that come back: of the shipped measurement's tokens, and consistent with itself."""

import numpy as np

from spectrobook import shipped, stable


def test_clusters_cards_and_places_are_of_the_same_tokens():
    clusters, cards, tokens = stable.clusters(), stable.cards(), len(shipped.result()["token_id"])
    assert len(clusters.labels) == len(stable.layout()) == len(stable.nearest()) == tokens
    assert [card.size for card in cards] == np.bincount(clusters.labels[clusters.labels >= 0]).tolist()
    np.testing.assert_allclose([card.share for card in cards], clusters.share)
    assert np.isfinite(stable.layout()).all()
    assert all(clusters.labels[example.row] == 3 for example in cards[3].examples)


def test_the_nearest_token_is_mostly_in_the_same_cluster_and_never_itself():
    labels, near = stable.clusters().labels, stable.nearest()
    assert (near != np.arange(len(near))[:, None]).all() and near.max() < len(near)
    inside = labels >= 0
    assert (labels[near[inside, 0]] == labels[inside]).mean() > 0.8
