"""Draws that are kept, so that any text can be read on them later without sampling.

A measurement does two things: it draws weights from posteriors, and it takes the losses of tokens at the draws. The
first does not depend on the second. So a *bank* holds the draws of every chain: the weights of its component at some
steps, and the minibatch losses there. A measurement that is given a bank (`measure(..., bank=...)`, ``spectro measure
--bank``) takes from it the draws that it needs, samples those that are missing, and leaves them there. Its result is
the same to the last bit as without the bank.

What a position depends on identifies the bank: model, sampling text, posterior and sampler, seed. How many draws are
taken of how many chains, and how many steps apart, does not. So fewer or sparser draws than a bank holds cost no step:
sample densely once, and evaluate as many draws as their effective sample size is worth (`spectro info`).

    manifest.json             what identifies the bank
    l3h1.chain0.npy           (draws, members of a team, weights), float32
    l3h1.chain0.npz           steps of the draws, losses (draws, members): written last
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from .posterior import Chain, Draw, Settings
from .store import claim, settle

FORMAT = 1
FREE = ("draws", "steps_between_draws", "burn_in", "chains", "max_rise")
"""Settings that say which steps of a chain are draws, and not where the chain goes."""


def identity(plan) -> dict:
    """What the position of a chain at a step depends on, as JSON-able values."""
    manifest = plan.manifest()
    return {
        "format": FORMAT,
        "model": manifest["model"]["hash"],
        "sampling": manifest["windows"]["sampling"]["hash"],
        "settings": {name: value for name, value in manifest["settings"].items() if name not in FREE},
        "machine": manifest["machine"],
    }


def open_bank(path: str | Path, plan) -> Bank:
    """The bank of a plan's chains; an empty one if the folder is not there.

    Raises:
        ValueError: if the folder holds draws of other chains (the message says where they differ) or other files, or
            cannot be written.
    """
    return Bank(claim(path, identity(plan), "bank of draws", "other chains"))


def size(work) -> float:
    """Bytes that the draws of a `scale.Work` take."""
    from .components import size as weights

    s = work.settings
    return 4.0 * s.chains * s.draws * work.members * sum(weights(name, work.shape) for name in work.sampled)


def steps(settings: Settings) -> list[int]:
    """The steps of a chain that are draws."""
    return [settings.burn_in + settings.steps_between_draws * (draw + 1) for draw in range(settings.draws)]


class Bank:
    """A folder of draws."""

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def files(self, name: str, chain: int) -> tuple[Path, Path]:
        """Positions of a component's chain, and what goes with them."""
        stem = f"{name.replace(' ', '-')}.chain{chain}"
        return self.path / f"{stem}.npy", self.path / f"{stem}.npz"

    def draws(self, names: Sequence[str], chain: int, settings: Settings, device) -> Iterator[Draw] | None:
        """The draws of the teams of some components, together; None if the bank lacks any.

        Raises:
            ValueError: if a file is damaged.
        """
        wanted, found = steps(settings), []
        for name in names:
            positions, about = self.files(name, chain)
            if not about.exists():
                return None
            try:
                with np.load(about) as held:
                    known, losses = held["steps"].tolist(), held["losses"]
                at = np.load(positions, mmap_mode="r")
                if at.shape[:2] != losses.shape:
                    raise ValueError(f"{at.shape} positions of {losses.shape} losses")
            except Exception as error:  # whatever numpy makes of a broken file
                raise ValueError(f"{positions} is damaged ({error}): delete it, and it is sampled again") from error
            if not set(wanted) <= set(known):
                return None
            found.append((at, losses, [known.index(step) for step in wanted]))
        return self._read(found, wanted, device)

    def _read(self, found: list, wanted: list[int], device) -> Iterator[Draw]:
        for index, step in enumerate(wanted):
            rows = [(at[places[index]], losses[places[index]]) for at, losses, places in found]
            positions = tuple(torch.from_numpy(np.array(own)).to(device) for at, _ in rows for own in at)
            yield Draw(index, step, positions, tuple(float(loss) for _, own in rows for loss in own))

    def keep(self, draws: Iterator[Draw], chains: Sequence[Chain], settings: Settings) -> Iterator[Draw]:
        """Pass the draws of the chains on, and keep them: those of a component once the last one is through."""
        members, wanted = len(settings.members), steps(settings)
        teams = [chains[i : i + members] for i in range(0, len(chains), members)]
        parts = [self.files(team[0].name, team[0].chain) for team in teams]
        mine = uuid.uuid4().hex  # shards of one task may do this at the same time
        tables = [
            np.lib.format.open_memmap(
                _part(file, mine), "w+", np.float32, (len(wanted), members, team[0].position.numel())
            )
            for (file, _), team in zip(parts, teams, strict=True)
        ]
        losses = np.empty((len(teams), len(wanted), members))
        for draw in draws:
            for i, table in enumerate(tables):
                own = slice(i * members, (i + 1) * members)
                for into, position in zip(table[draw.index], draw.positions[own], strict=True):
                    into[:] = position.cpu().numpy()
                losses[i, draw.index] = draw.losses[own]
            yield draw
        while tables:
            tables.pop().flush()
        for (file, about), own in zip(parts, losses, strict=True):
            np.savez(_part(about, mine), steps=np.array(wanted), losses=own)
            settle(_part(file, mine), file)
            settle(_part(about, mine), about)


def _part(file: Path, unique: str) -> Path:
    return file.with_suffix(f".{unique}.part{file.suffix}")
