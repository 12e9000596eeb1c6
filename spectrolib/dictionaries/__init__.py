"""Sparse autoencoders, and how clusters of tokens match their features."""
