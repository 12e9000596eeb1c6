"""Checks of a measurement: whether chains have settled, how reliable numbers are, and whether predictions hold."""
