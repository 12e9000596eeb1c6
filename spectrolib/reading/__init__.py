"""Clusters made readable: what their members share, cards, the catalogue, the map."""
