"""Worlds small enough for exact answers: truth to test samplers and estimators against."""
