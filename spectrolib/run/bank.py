"""Draws that are kept, so that any text can be read on them later without sampling.

A measurement does two things: it draws weights from posteriors, and it takes the losses of tokens at the draws. The
first does not depend on the second. So a *bank* holds the draws of every chain: the weights of its component at some
steps, and the minibatch losses there. A measurement that is given a bank (`measure(..., bank=...)`, ``spectro measure
--bank``) takes from it the draws that it needs, samples those that are missing, and adds them. Its result is that of
the measurement without a bank: to the last bit if the draws were made by one of the same components, else up to the
rounding of matrix products, which depends on what passes through them together.

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
from typing import NamedTuple

import numpy as np
import torch
from numpy import ndarray

from ..posterior import Chain, Draw, Settings
from .files import part_of, settle
from .store import claim

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


def bank_bytes(work) -> float:
    """Bytes that the draws of a `cost.Work` take."""
    from ..model.components import weight_count

    s = work.settings
    return 4.0 * s.chains * s.draws * work.members * sum(weight_count(name, work.shape) for name in work.sampled)


def steps(settings: Settings) -> list[int]:
    """The steps of a chain that are draws."""
    return [settings.burn_in + settings.steps_between_draws * (draw + 1) for draw in range(settings.draws)]


class Bank:
    """A folder of draws."""

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def files(self, name: str, chain: int) -> tuple[Path, Path]:
        """The two files of a component's chain: positions, and steps with losses."""
        stem = f"{name.replace(' ', '-')}.chain{chain}"
        return self.path / f"{stem}.npy", self.path / f"{stem}.npz"

    def held(self, name: str, chain: int) -> Held | None:
        """What the bank has of a component's chain.

        Raises:
            ValueError: if a file is damaged.
        """
        positions, about = self.files(name, chain)
        if not about.exists():
            return None
        try:
            with np.load(about) as table:
                steps, losses = table["steps"].tolist(), table["losses"]
            at = np.load(positions, mmap_mode="r")
            if at.shape[:2] != losses.shape or len(steps) != len(losses):
                raise ValueError(f"{at.shape} positions of {losses.shape} losses at {len(steps)} steps")
        except Exception as error:  # whatever numpy makes of a broken file
            raise ValueError(
                f"{positions} is damaged ({error}): delete it and {about.name}, and it is sampled again"
            ) from error
        return Held(steps, at, losses)

    def draws(self, names: Sequence[str], chain: int, settings: Settings, device) -> Iterator[Draw] | None:
        """The draws of the teams of some components, together; None if the bank lacks any.

        Raises:
            ValueError: if a file is damaged.
        """
        wanted, found = steps(settings), [self.held(name, chain) for name in names]
        if any(held is None or not set(wanted) <= set(held.steps) for held in found):
            return None
        return self._read(found, wanted, device)

    def _read(self, found: list[Held], wanted: list[int], device) -> Iterator[Draw]:
        for index, step in enumerate(wanted):
            rows = [(held, held.steps.index(step)) for held in found]
            positions = tuple(torch.from_numpy(np.array(own)).to(device) for held, row in rows for own in held.at[row])
            yield Draw(index, step, positions, tuple(float(loss) for held, row in rows for loss in held.losses[row]))

    def keep(self, draws: Iterator[Draw], chains: Sequence[Chain], settings: Settings) -> Iterator[Draw]:
        """Pass the draws of the chains on, and add them to the bank once the last one is through."""
        members = len(settings.members)
        teams = [chains[i : i + members] for i in range(0, len(chains), members)]
        mine = uuid.uuid4().hex  # shards of one task may do this at the same time
        tables = [_Table(self, team, steps(settings), mine) for team in teams]
        try:
            for draw in draws:
                for i, table in enumerate(tables):
                    table.take(draw, slice(i * members, (i + 1) * members))
                yield draw
            for table in tables:
                table.settle()
        finally:
            for table in tables:
                table.discard()


class Held(NamedTuple):
    """What a bank has of a component's chain."""

    steps: list[int]
    at: ndarray
    """(draws, members, weights) positions, on disk."""
    losses: ndarray
    """(draws, members), nats."""


class _Table:
    """The draws of a team on their way into the bank, with those that are there: a bank only grows."""

    def __init__(self, bank: Bank, team: Sequence[Chain], wanted: list[int], unique: str):
        name, chain, weights = team[0].name, team[0].chain, team[0].position.numel()
        self.files = bank.files(name, chain)
        self.parts = [part_of(file.with_suffix(f".{unique}{file.suffix}")) for file in self.files]
        held = bank.held(name, chain) or Held([], np.empty((0, len(team), weights)), np.empty((0, len(team))))
        self.steps = sorted({*wanted, *held.steps})
        shape = (len(self.steps), len(team), weights)
        self.at, self.losses = np.lib.format.open_memmap(self.parts[0], "w+", np.float32, shape), np.empty(shape[:2])
        for step, position, loss in zip(held.steps, held.at, held.losses, strict=True):
            row = self.steps.index(step)
            self.at[row], self.losses[row] = position, loss

    def take(self, draw: Draw, own: slice) -> None:
        row = self.steps.index(draw.step)
        for into, position in zip(self.at[row], draw.positions[own], strict=True):
            into[:] = position.cpu().numpy()
        self.losses[row] = draw.losses[own]

    def settle(self) -> None:
        self.at.flush()
        np.savez(self.parts[1], steps=np.array(self.steps), losses=self.losses)
        for part, file in zip(self.parts, self.files, strict=True):
            settle(part, file)

    def discard(self) -> None:
        """What is left where a chain failed or was stopped; a process that is killed leaves its ``.part`` files."""
        for part in self.parts:
            part.unlink(missing_ok=True)
