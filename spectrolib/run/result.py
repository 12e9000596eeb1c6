"""The labelled result of a measurement, put together from the partial sums of its tasks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from .. import estimator
from ..estimator import ESTIMATORS, CovarianceSums, Estimator, joined
from ..model.components import FULL
from ..model.engine import one_thread
from ..model.loading import LanguageModel, engine_of
from ..text.corpus import Windows
from ..text.runningtext import token_texts
from .cost import SUM_BYTES
from .plan import Plan
from .resolved import from_draws
from .store import ComponentRecord, RunFolder, TaskFile


def assemble(plan: Plan, run: RunFolder):
    """The labelled result of all tasks, as an `xarray.Dataset`.

    Partial sums are read a few tokens at a time, so that this needs little more memory than the result itself.

    Dimensions: ``token`` (every probe token but the first of each window), ``component``, ``sampled`` (the components,
    and ``full`` where the two-chain value was asked for), ``estimator`` (the one-chain value, and where it was asked
    for the two-chain one), ``chain``, ``draw``, ``half`` (chains of even and of odd number), ``block`` (draws so far).

    Variables:
        susceptibility: (token, component), by the plan's estimator; nats², up to a factor of each component.
        standard_error: (token, component), its jackknife standard error over chains.
        covariance: (token, component), Cov_C(g, d): minus the one-chain estimate. From the response of tilted chains
            where there are any.
        sample_covariance: (token, component), the plain one over the same draws.
        control_covariance: (control, token, component), with g permuted over draws, and with noise in its place.
        restricted_moment: (token, component), mean_C[d] relative to its value at w*, nats.
        full_moment: (token,), mean_F[d] likewise; with the two-chain value.
        rise: (sampled,), mean of g = L(w) - L(w*), nats.
        half_susceptibility: (estimator, half, block, token, component), estimates from each half of the chains with
            their first draws up to ``block``; only with two chains or more.
        loss_rise, batch_loss: (sampled, chain, draw), traces of g and of the minibatch loss, nats.
        loss: (token,), loss at w*, nats.
        resolved: (half, token, channel), resolved rows (`estimator.ResolvedSums`), where the plan keeps channels.
            ``channel_component`` says whose a channel is; the rows of a component have unit length on average.
        resolved_scale: (half, component), that length before, nats.
    """
    import xarray as xr

    settings, names, sampled = plan.settings, list(plan.components), list(plan.sampled)
    tokens, halves = plan.probe.ids[:, 1:].size, settings.chains > 1
    chains = chain_records(plan, run)
    table = lambda *dims, kind=np.float64: np.empty((*dims, tokens, len(names)), dtype=kind)  # noqa: E731
    kinds = [kind for kind in ESTIMATORS if FULL in sampled or kind == "one_chain"]
    tables, full_moment = table(len(TABLES)), np.empty(tokens)
    controls = table(len(estimator.CONTROLS), kind=np.float32)
    half = table(len(kinds), 2, plan.blocks, kind=np.float32) if halves else None
    for part in _slabs(tokens, settings.chains * plan.blocks):
        full = [chain.read(part) for chain in chains.get(FULL, ())]
        if full:
            full_moment[part] = _pooled(full).mean_losses
        for i, name in enumerate(names):
            own = [chain.read(part) for chain in chains[name]]
            tables[:, part, i] = _table(plan.estimator, own, full)
            controls[:, part, i] = _pooled(own).controls
            if half is not None:
                half[..., part, i] = _halves(kinds, own, full)
    traces = {name: [chain.traces() for chain in chains[name]] for name in sampled}
    variables = {
        **{name: (("token", "component"), values) for name, values in zip(TABLES, tables, strict=True)},
        "control_covariance": (("control", "token", "component"), controls),
        **({"full_moment": ("token", full_moment)} if FULL in sampled else {}),
        "rise": ("sampled", np.array([np.mean([chain.rise for chain in traces[name]]) for name in sampled])),
        "loss": ("token", _start_losses(plan)),
    }
    for trace, key in (("loss_rise", "rise"), ("batch_loss", "batch_loss")):
        values = np.array([[getattr(chain, key) for chain in traces[name]] for name in sampled])
        variables[trace] = (("sampled", "chain", "draw"), values)
    if half is not None:
        variables["half_susceptibility"] = (("estimator", "half", "block", "token", "component"), half)
    resolved = from_draws(plan, {name: [chain.shards for chain in chains[name]] for name in names})
    channels = {name: resolved.pop(name) for name in ("channel_component",) if name in resolved}
    block_draws = [-(-settings.draws * (b + 1) // plan.blocks) for b in range(plan.blocks)]
    return xr.Dataset(
        variables | resolved,
        coords={
            **channels,
            "component": names,
            "sampled": sampled,
            "estimator": kinds,
            "control": list(estimator.CONTROLS),
            "block": block_draws,
            **token_coordinates(plan.model, plan.probe),
        },
        attrs={"manifest": json.dumps(plan.manifest(), sort_keys=True), "estimator": plan.estimator},
    )


TABLES = ("susceptibility", "standard_error", "covariance", "sample_covariance", "restricted_moment")


SLAB_BYTES = 32 * 2**20
"""Partial sums that `assemble` holds at once, of one component and of the whole model."""


def _slabs(tokens: int, parts: int) -> list[slice]:
    """Stretches of the tokens, short enough that ``parts`` partial sums of two components fit `SLAB_BYTES`."""
    count = -(-tokens * 2 * parts * SUM_BYTES // SLAB_BYTES)
    ends = [tokens * i // count for i in range(count + 1)]
    return [slice(*ends) for ends in pairwise(ends)]


@dataclass(frozen=True)
class ChainRecord:
    """What one chain of one component measured, as it lies on disk: in one file for each shard of the probe text."""

    component: str
    shards: tuple[TaskFile, ...]
    """In the order of their tokens."""
    starts: tuple[int, ...]
    """The first token of each, among all probe tokens."""

    def read(self, part: slice) -> ComponentRecord:
        """What it measured of some of the tokens, from the shards that hold them."""
        found = [
            file.record(self.component, max(part.start - start, 0), part.stop - start)
            for start, file in zip(self.starts, self.shards, strict=True)
            if start < part.stop and part.start < start + file.tokens
        ]
        if len(found) == 1:
            return found[0]
        sums = zip(*(record.sums for record in found), strict=True)
        return replace(found[0], sums=tuple(map(joined, sums)))

    def traces(self) -> ComponentRecord:
        """Its traces alone, without any token: every shard holds them."""
        return self.shards[0].record(self.component, 0, 0)


def chain_records(plan: Plan, run: RunFolder) -> dict[str, list[ChainRecord]]:
    """The chains of all that was sampled, by number, in a run whose every task is finished."""
    finished = run.finished()
    found: dict[str, list[ChainRecord]] = {name: [] for name in plan.sampled}
    for task in plan.whole:
        stretches = sorted(finished[task.name], key=lambda stretch: stretch or (0, 0))
        shards = tuple(TaskFile(run.task_file(replace(task, windows=stretch).name)) for stretch in stretches)
        starts = tuple(np.cumsum([0, *(file.tokens for file in shards[:-1])]).tolist())
        for name in task.components:
            found[name].append(ChainRecord(name, shards, starts))
    return found


def _pooled(chains: Sequence[ComponentRecord], blocks: int | None = None) -> CovarianceSums:
    """All chains together, with their first blocks of draws."""
    return estimator.merge_all(chain.pooled(blocks) for chain in chains)


def _table(
    kind: Estimator, own: Sequence[ComponentRecord], full: Sequence[ComponentRecord]
) -> list[Float[ndarray, " token"]]:
    """What `TABLES` names."""
    chains, whole = [chain.pooled() for chain in own], [chain.pooled() for chain in full]
    together = estimator.merge_all(chains)
    return [
        estimator.susceptibility(kind, chains, whole),
        estimator.standard_error(kind, chains, whole),
        together.covariance(),
        together.sample_covariance(),
        together.mean_losses,
    ]


def _halves(
    kinds: Sequence[Estimator], own: Sequence[ComponentRecord], full: Sequence[ComponentRecord]
) -> Float[ndarray, "estimator half block token"]:
    """Estimates from the chains of even and of odd number, with their first blocks of draws."""

    def estimate(kind: Estimator, half: int, blocks: int) -> ndarray:
        return estimator.susceptibility(kind, *([chain.pooled(blocks) for chain in c[half::2]] for c in (own, full)))

    counts = range(1, len(own[0].sums) + 1)
    return np.array([[[estimate(kind, half, b) for b in counts] for half in (0, 1)] for kind in kinds])


def _start_losses(plan: Plan) -> Float[ndarray, " token"]:
    with one_thread():
        engine = engine_of(plan.model)
        engine.tokens_per_pass = plan.tokens_per_pass or engine.tokens_per_pass
        return engine.losses(plan.probe).flatten().cpu().numpy()


def token_coordinates(model: LanguageModel, probe: Windows) -> dict[str, tuple[str, ndarray]]:
    """What each probe token is and where it stands, as coordinates of the dimension ``token``."""
    windows, length = probe.ids.shape
    predicted = probe.ids[:, 1:]
    text = token_texts(model.tokens, predicted)
    repeat = lambda values: np.repeat(values, length - 1)  # noqa: E731
    return {
        "sequence": ("token", repeat(np.arange(windows))),
        "position": ("token", np.tile(np.arange(1, length), windows)),
        "token_id": ("token", predicted.flatten()),
        "first_token": ("token", repeat(probe.ids[:, 0])),  # of the token's window: nothing predicts it
        "text": ("token", np.array([text[int(i)] for i in predicted.flatten()], dtype=object)),
        "domain": ("token", repeat(np.asarray(probe.domain, dtype=object))),
        "document": ("token", repeat(np.asarray(probe.document, dtype=object))),
    }
