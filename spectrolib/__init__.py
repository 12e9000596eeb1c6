"""Susceptibilities of language models, and the clusters of tokens they show.

Two public functions carry the name of the module they live in: ``spectrolib.measure`` and ``spectrolib.components`` are
functions; ``from spectrolib.measure import assemble`` reaches into the module. Other modules are imported when they are
first named: ``spectrolib.modes.decompose``.
"""

from importlib import import_module
from importlib.metadata import version

from .components import components
from .estimator import standardise
from .measure import measure
from .models import load_model
from .plan import Plan

__all__ = ["Plan", "components", "load_model", "measure", "standardise"]
__version__ = version("spectrolib")


def __getattr__(name: str):
    try:
        return import_module(f"{__name__}.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"{__name__}.{name}":
            raise
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
