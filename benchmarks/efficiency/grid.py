"""The cells of the benchmark: which components, at which settings, with which chains."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace

from spectrolib.posterior import Member, Settings

COMPONENTS = ("l1h0", "l3h1", "l2 mlp", "embed", "unembed")
"""Two heads, an MLP, the embedding and the unembedding, at the centre of the grid."""
GRID = ("l3h1", "l2 mlp")
NBETA, GAMMA = (0.0, 10.0, 30.0, 100.0), (100.0, 300.0, 1000.0, 3000.0)
CENTRE = 10.0, 300.0
STRONG = (1000.0, 3000.0)
"""More nβ, at the centre's γ: where does the posterior begin to see the loss?"""
OWN_DRAWS = 3
LONG = ("l3h1", "l2 mlp", "unembed")
"""Components of the long plain runs."""


@dataclass(frozen=True)
class Cell:
    """One component at one setting."""

    component: str
    nbeta: float
    gamma: float
    team: str
    """``single``; ``pair``: nβ ± tilt, common noise; ``quad``: both mirrored too; ``six``: and both noises at nβ."""
    replicates: int
    draws: int
    tilt: float = 10.0
    batch: int = 4
    steps: int = 6
    """Between draws."""
    noise: str = ""
    """The component whose noise it takes; its own by default."""

    @property
    def name(self) -> str:
        """A name fit for a file."""
        values = {key: value for key, value in asdict(self).items() if value != ""}
        return "_".join(str(f"{v:g}" if isinstance(v, float) else v) for v in values.values()).replace(" ", "-")

    @property
    def settings(self) -> Settings:
        """The settings of one of its chains; εγ/2 is 0.195 whatever γ."""
        return Settings(
            nbeta=self.nbeta,
            gamma=self.gamma,
            step_size=0.39 / self.gamma,
            batch_size=self.batch,
            chains=1,
            draws=self.draws,
            steps_between_draws=self.steps,
            burn_in=8,
            preconditioner="none",
        )

    @property
    def members(self) -> list[Member]:
        """Its chains: those at nβ ± tilt, then those at nβ."""
        if self.team == "single":
            return [Member(self.nbeta, False, 0.0)]
        signs = (False,) if self.team == "pair" else (False, True)
        tilted = [Member(self.nbeta + tilt, sign, tilt) for sign in signs for tilt in (self.tilt, -self.tilt)]
        return tilted + [Member(self.nbeta, sign, 0.0) for sign in signs if self.team == "six"]


def cells() -> list[Cell]:
    """All of them, those that answer most first."""
    nbeta, gamma = CENTRE
    near = sorted(GAMMA, key=lambda g: abs(math.log(g / gamma)))
    centre = [Cell(name, nbeta, gamma, "six", 6, 6) for name in (*COMPONENTS, "full")]
    grid = [Cell(name, n, g, "pair", 8 if g == gamma else 4, 3) for g in near for n in NBETA for name in GRID]
    strong = [Cell(name, n, gamma, "pair", 4, 3) for n in STRONG for name in GRID]
    local = [Cell("full", n, g, "single", 1, 2) for g in near for n in NBETA]
    few = [replace(pair(name), replicates=4) for name in GRID]
    tilt = [replace(cell, nbeta=n, tilt=t) for cell in few for n, t in ((10.0, 2.0), (30.0, 30.0), (100.0, 100.0))]
    other = [replace(pair("l3h0"), replicates=4, noise=noise) for noise in ("", "l3h1")]
    batch = [replace(cell, batch=batch) for cell in few for batch in (1, 16)]
    steps = [replace(cell, steps=steps) for cell in few for steps in (2, 12)]
    return centre + grid + strong + local + tilt + other + batch + steps


def pair(component: str) -> Cell:
    return Cell(component, *CENTRE, "pair", 8, 3)


def varies(cell: Cell) -> str:
    """Which setting besides nβ and γ is not the grid's: ``tilt``, ``batch``, ``steps``, ``noise`` or none."""
    usual = {"tilt": 10.0, "batch": 4, "steps": 6, "noise": ""}
    changed = [name for name, value in usual.items() if getattr(cell, name) != value]
    return changed[0] if changed else ("noise" if cell.component == "l3h0" else "")
