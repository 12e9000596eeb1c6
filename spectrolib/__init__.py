"""Susceptibilities of language models, and the clusters of tokens they show.

The seven files of this folder are the method itself: `posterior` samples, `estimator` turns draws into
susceptibilities, `modes` decomposes them, and `graph`, `pagerank`, `peeling` and `clustering` cut tokens into clusters.
They import nothing but each other and other packages. Everything else lies in a subpackage, called a wing:

    text          documents, token windows, what can be said of a token from its text
    model         shapes, components, the engine that moves one component at a time, loading
    exact         worlds small enough for exact answers: truth to test against
    checks        whether chains have mixed, how certain a number is, whether a prediction holds
    run           plans, tasks, workers, run folders, results
    reading       cards, rules, catalogue and map of clusters
    dictionaries  sparse autoencoders, and how clusters match their features
    cli           the command `spectro`

The public names below are imported when they are first used.

Docstrings tag what is said of the paper, as the book's page "From the paper to the code" does: [V] verified in a
primary source, [S] stated by one careful secondary source, [D] derived here, [I] inferred by us, [U] unknown.
"""

from importlib import import_module
from importlib.metadata import version

__version__ = version("spectrolib")

_HOME = {
    "Plan": "run.plan",
    "components": "model.components",
    "load_model": "model.loading",
    "measure": "run.measure",
    "standardise": "estimator",
}
"""Public functions and classes, and the module that each lives in."""

_ROOM = {
    "activations": "model.activations",
    "autoencoders": "dictionaries.autoencoders",
    "cards": "reading.cards",
    "catalogue": "reading.catalogue",
    "clustering": "clustering",
    "corpus": "text.corpus",
    "cost": "run.cost",
    "devinterp": "run.devinterp",
    "diagnostics": "checks.diagnostics",
    "engine": "model.engine",
    "estimator": "estimator",
    "graph": "graph",
    "matching": "dictionaries.matching",
    "modes": "modes",
    "naming": "reading.naming",
    "neighbours": "reading.neighbours",
    "pagerank": "pagerank",
    "posterior": "posterior",
    "profiles": "run.profiles",
    "resolved": "run.resolved",
    "rules": "reading.rules",
    "store": "run.store",
    "tokenmap": "reading.tokenmap",
    "uncertainty": "checks.uncertainty",
}
"""Public modules by their short names: ``from spectrolib import tokenmap``."""

__all__ = [*_HOME, *_ROOM]


def __getattr__(name: str):
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    if name in _ROOM:
        return import_module(f"{__name__}.{_ROOM[name]}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}: its public names are {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
