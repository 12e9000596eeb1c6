"""Planted clusters that several tests of the search share."""

import pytest

from spectrobook.clouds import Clouds, plant
from spectrolib import clustering, graph


@pytest.fixture(scope="session")
def planted():
    """1200 rows, six clusters of 20 to 150, and their mutual graph."""
    clouds = plant(Clouds(tokens=1200, clusters=6, largest=150, hubs=12), seed=1)
    return clouds, graph.knn_graph(clouds.vectors, symmetrise="mutual")


@pytest.fixture(scope="session")
def found(planted) -> clustering.Clustering:
    return clustering.conductance_clusters(planted[1])
