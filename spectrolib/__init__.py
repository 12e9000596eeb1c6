"""Susceptibilities of language models, and the clusters of tokens they show.

Two public functions carry the name of the module they live in: ``spectrolib.measure`` and ``spectrolib.components`` are
functions; ``from spectrolib.measure import assemble`` reaches into the module.
"""

from importlib.metadata import version

from .components import components
from .estimator import standardise
from .measure import measure
from .models import load_model
from .plan import Plan

__all__ = ["Plan", "components", "load_model", "measure", "standardise"]
__version__ = version("spectrolib")
