"""Readings of draws: what every caller made of its own chains before, for single chains and for teams."""

from dataclasses import replace

import pytest
import torch

from spectrolib.model.loading import engine_of
from spectrolib.posterior import Chain, ChainError, Settings, lockstep, team
from spectrolib.run.readings import read, readings, teams

SETTINGS = Settings(
    nbeta=5.0, gamma=300.0, step_size=1e-3, preconditioner="none", batch_size=2, draws=3, steps_between_draws=2, seed=3
)
COUPLED = [{}, {"antithetic": True}, {"tilt": 2.0}, {"antithetic": True, "tilt": 2.0}, {"nbeta": 0.0}]
APART = {"share_batches": False}  # each chain has minibatches of its own
HALF_DRIVEN = {"nbeta": 2.0, "tilt": 2.0}  # one member at nbeta = 0, which needs no gradient


@pytest.fixture(scope="module")
def engine(tiny_gpt_neox):
    return engine_of(tiny_gpt_neox)


@pytest.mark.parametrize("changes", [*COUPLED, HALF_DRIVEN, APART])
@pytest.mark.parametrize("names", [("l0h1", "l0 mlp"), ("unembed",), ("full",)])
def test_readings_are_those_of_chains_that_are_run_by_hand(engine, tiny_windows, names, changes):
    settings = replace(SETTINGS, **changes)
    loss, probe = tiny_windows[:3], tiny_windows[3:]
    size = len(settings.members)
    group = engine.group([name for name in names for _ in range(size)])
    starts = zip(names, group.start[::size], strict=True)
    chains = [chain for name, start in starts for chain in team(start, settings, name=name, chain=1)]
    driven = [chain.name for chain in chains if chain.driven]
    gradients = engine.group(driven).minibatch_gradients(tiny_windows, settings, 1) if driven else None
    draws = lockstep(chains, gradients, settings)
    found = readings(engine, names, 1, settings, sampling=tiny_windows, probe=probe, loss=loss)
    count = 0
    for draw, reading in zip(draws, found, strict=True):
        assert draw.index == reading.draw.index == count
        torch.testing.assert_close(reading.draw.losses, draw.losses, rtol=0, atol=0, equal_nan=True)
        for ours, theirs in zip(reading.draw.positions, draw.positions, strict=True):
            assert torch.equal(ours, theirs)
        on_loss, on_probe = (group.losses(draw.positions, group.cache(text)) for text in (loss, probe))
        assert torch.equal(reading.loss, on_loss) and torch.equal(reading.probe, on_probe)
        rise = on_loss.double().mean(dim=(1, 2)) - engine.losses(loss).double().mean()
        excess = on_probe.double() - engine.losses(probe).double() - rise[:, None, None]
        assert torch.equal(reading.rise, rise) and torch.equal(reading.excess, excess.flatten(1))
        count += 1
    assert count == settings.draws


def test_the_loss_is_that_of_the_probe_where_no_other_text_is_given(engine, tiny_windows):
    given = readings(engine, ["embed"], 0, SETTINGS, sampling=tiny_windows, probe=tiny_windows, loss=tiny_windows)
    alone = readings(engine, ["embed"], 0, SETTINGS, sampling=tiny_windows, probe=tiny_windows)
    for a, b in zip(given, alone, strict=True):
        torch.testing.assert_close(a.rise, b.rise, rtol=0, atol=1e-12)
        torch.testing.assert_close(b.excess.mean(dim=1), torch.zeros(1).double(), rtol=0, atol=1e-12)


def test_members_stand_team_by_team(engine):
    settings = replace(SETTINGS, antithetic=True, tilt=2.0)
    group, chains = teams(engine, ["l0h1", "l0 mlp"], settings, 2)
    assert list(map(str, group.members)) == ["l0h1"] * 4 + ["l0 mlp"] * 4 == [chain.name for chain in chains]
    assert [chain.member for chain in chains] == settings.members * 2
    assert {chain.chain for chain in chains} == {2}


def test_draws_of_another_make_are_read_too(engine, tiny_windows):
    """Chains with another's noise, as benchmarks have them: a free chain needs no gradient."""
    settings = replace(SETTINGS, nbeta=0.0)
    group = engine.group(["l0h0"])
    chains = [Chain(group.start[0], settings, name="l0h1")]
    found = [one.rise.item() for one in read(group, chains, lockstep(chains, None, settings), probe=tiny_windows)]
    assert len(found) == 3 and len(set(found)) == 3


def test_a_chain_that_leaves_is_noticed_at_its_draw(engine, tiny_windows):
    wild = replace(SETTINGS, nbeta=0.0, gamma=0.01, step_size=1.0, max_rise=1e-3)
    with pytest.raises(ChainError, match="component embed, chain 0, draw 0"):
        list(readings(engine, ["embed"], 0, wild, sampling=tiny_windows, probe=tiny_windows))
