"""Profiles: every constant of a run in one place.

``smoke`` is a first look (tests, Binder), ``book`` is what the rendered book was made with, ``laptop`` measures
somebody else's model to first order in minutes, ``paper`` is the setting of the paper's Pythia runs, as far as it is
known, for a GPU or a cluster.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..posterior import Settings


@dataclass(frozen=True)
class Profile:
    """The constants of one run of the main job."""

    name: str
    model: str
    """What `load_model` takes."""
    source: str
    """Where the text comes from: ``bundled``, or a data set on the hub (`text.corpus.hub_source`)."""
    length: int
    """Tokens of a window; it holds one prediction fewer."""
    sampling_windows: int
    """Windows that minibatches are drawn from."""
    loss_windows: int
    """Fixed windows on which L(w) and L(w*) are taken."""
    probe_windows: int
    """Fixed windows whose tokens get a susceptibility."""
    settings: Settings
    probe_source: str = ""
    """A data set of its own for the probe text."""
    first_order: bool = False
    """Gradients at w* in place of chains; of the settings only γ and the seed count then."""


# ε, nβ and γ are one choice for all components. Plain SGLD relaxes εγ/2 of the distance to w* in a step; our rule (an
# inference: εγ/2 at most 0.2, times the steps between draws about 2.4) asks for 12 steps.
SMOKE = Profile(
    name="smoke",
    model="bundled",
    source="bundled",
    length=65,
    sampling_windows=64,
    loss_windows=6,
    probe_windows=12,
    settings=Settings(
        nbeta=10.0,
        gamma=300.0,
        step_size=1.3e-3,
        preconditioner="none",
        batch_size=4,
        chains=2,
        draws=2,
        steps_between_draws=3,
        burn_in=6,
        share_batches=False,
        antithetic=True,
        tilt=10.0,
    ),
)

# Teams of four chains (mirrored noise, tilts of ±nβ) measure with far fewer draws than single ones, and the two of them
# at nβ = 0 need no gradient. Minibatches differ between chains, so that their spread holds the minibatches' noise too.
BOOK = Profile(
    name="book",
    model="bundled",
    source="bundled",
    length=129,
    sampling_windows=1000,
    loss_windows=8,
    probe_windows=160,
    settings=Settings(
        nbeta=10.0,
        gamma=300.0,
        step_size=1.3e-3,
        preconditioner="none",
        batch_size=8,
        chains=4,
        draws=4,
        steps_between_draws=6,
        burn_in=8,
        share_batches=False,
        antithetic=True,
        tilt=10.0,
    ),
)

# To first order a token costs one backward pass, whatever the number of components: 10 240 tokens of a small Pythia are
# minutes. γ only scales the paper's number.
LAPTOP = Profile(
    name="laptop",
    model="EleutherAI/pythia-14m",
    source="NeelNanda/pile-10k",
    length=129,
    sampling_windows=64,
    loss_windows=1,
    probe_windows=80,
    settings=BOOK.settings,
    first_order=True,
)

# γ, nβ, batch, chains and draws of the paper's 14M run are inferred from its 1.4B run; step size and steps between
# draws from the rule above with G <= 1/e; context length and number of tokens are our choice, and so are teams:
# `settings.plain()` (`--plain`) has the paper's own 4 chains of 100 draws. The paper does not name its data sets: these
# two are what the authors' own library measures this model with in its tests. They pack documents into windows of 2 048
# tokens after a BOS token; here each window lies inside one document, so that every token's context is its own.
PAPER = Profile(
    name="paper",
    model="EleutherAI/pythia-14m",
    source="timaeus/dsir-pile-10k:contents",
    probe_source="timaeus/pile-github",
    length=257,
    sampling_windows=4096,
    loss_windows=128,
    probe_windows=80,
    settings=Settings(
        nbeta=10.0,
        gamma=300.0,
        step_size=1e-4,
        preconditioner="rmsprop",
        batch_size=16,
        chains=4,
        draws=25,
        steps_between_draws=16,
        burn_in=16,
        antithetic=True,
        tilt=10.0,
    ),
)

PROFILES = {profile.name: profile for profile in (SMOKE, BOOK, LAPTOP, PAPER)}


def get(name: str) -> Profile:
    """The profile called ``name``.

    Raises:
        ValueError: if there is none; the message lists those there are.
    """
    if name not in PROFILES:
        raise ValueError(f"unknown profile {name!r}: it must be one of {', '.join(PROFILES)}")
    return PROFILES[name]
