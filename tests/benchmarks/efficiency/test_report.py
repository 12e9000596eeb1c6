"""The tables of the efficiency benchmark, of planted cells, and what the README says of the shipped ones."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from efficiency.grid import COMPONENTS, cells
from efficiency.report import plain_numbers, report, run_rows
from efficiency.runs import Work

from spectrobook import DATA
from spectrolib.estimator import CovarianceSums
from spectrolib.model.shapes import Shape
from spectrolib.run.store import ComponentRecord, RunFolder

README = Path(__file__).resolve().parents[3] / "README.md"


def planted_cell(cell, seed: int, tokens: int = 400) -> dict[str, np.ndarray]:
    """Chains whose response is a known column of unit size under noise of size one in a replicate's mean."""
    rng = np.random.default_rng(seed)
    column = np.random.default_rng(100 + seed).normal(size=tokens)
    chains = len(cell.members)
    tilts = np.array([member.tilt for member in cell.members])
    pair = np.repeat(rng.normal(size=(cell.replicates, cell.draws, chains // 2, tokens)), 2, axis=2)
    error = rng.normal(size=(cell.replicates, 1, 1, tokens))
    rise = 0.1 + 0.01 * rng.normal(size=(cell.replicates, cell.draws, chains))
    one = np.ones(cell.replicates)
    return {
        "excess": (pair + tilts[:, None] * (column + error)).astype(np.float32),
        "rise": rise,
        "width": 0.06 * one,
        "own_width": 0.2 * one,
        "gradient_seconds": 0.03 * one,
        "update_seconds": 1e-4 * one,
        "evaluation_seconds": 3e-5 * one,
    }


def test_the_report_of_planted_cells(tmp_path):
    wanted = [cell for cell in cells() if cell.team == "six" and cell.component in ("l3h1", "l1h0", "full")]
    wanted += [cell for cell in cells() if cell.team == "pair" and cell.gamma == 300.0 and cell.nbeta <= 10.0]
    for i, cell in enumerate(wanted):
        np.savez(tmp_path / f"{cell.name}.npz", **planted_cell(cell, i))
    for i, name in enumerate(COMPONENTS):
        rng = np.random.default_rng(50 + i)
        np.save(tmp_path / f"own_{name.replace(' ', '-')}.npy", rng.normal(size=400) + rng.normal(size=(6, 400)))
    for cell in wanted:
        np.save(tmp_path / f"slope_{cell.component.replace(' ', '-')}.npy", np.random.default_rng(8).normal(size=400))
    shape = Shape.from_config(
        dict(hidden_size=8, num_hidden_layers=6, num_attention_heads=4, intermediate_size=16, vocab_size=32)
        | dict(model_type="gpt_neox")
    )
    ids = np.zeros((4, 101), dtype=int)
    work = Work(SimpleNamespace(shape=shape), ids, ids, ids)
    found = plain_numbers(report(tmp_path, work))
    json.dumps(found, allow_nan=False)
    quads = {row["component"]: row for row in found["columns"] if row["estimator"] == "covariance_quads"}
    for row in quads.values():  # signal and noise of size one; six draws to a replicate, four times the odds at 0.8
        assert row["reliability"] == pytest.approx(0.5, abs=0.06)
        assert row["draws_for"]["0.8"] == pytest.approx(24, rel=0.25)
    (gain,) = [row for row in found["gains"] if row["estimator"] == "covariance_quads"]
    assert gain["seconds_low"] < gain["seconds"] < gain["seconds_high"]
    zeros = [row for row in found["grid"] if row.get("zero")]
    assert zeros and all(row["zero"]["value"] < 0.3 for row in zeros)  # other columns at every setting here


def test_a_run_of_teams_is_read_back(tmp_path):
    rng, tokens = np.random.default_rng(11), 3000
    column = {name: rng.normal(size=tokens) for name in ("a", "b", "full")}
    run = RunFolder(tmp_path / "run", {"components": ["a", "b"], "settings": {"chains": 4, "draws": 2}})
    for k in range(4):
        records = {}
        for name in column:
            sums = CovarianceSums()
            for _ in range(2):
                response = column[name] + rng.normal(size=tokens)
                sums.update(0.2, response).update(0.2, -response).respond(response, -response, 1.0)
            records[name] = ComponentRecord((sums,), np.zeros(2), np.zeros(2))
        run.save_task(f"layer0.chain{k}", records)
    found = run_rows(tmp_path / "run")
    # noise of half the signal's variance in a team, an eighth in all four
    np.testing.assert_allclose(found["covariance_quads"]["columns"], 1 / (1 + 1 / 8), atol=0.02)
    assert found["covariance_quads"]["draws_for"]["0.8"] == pytest.approx(
        4, rel=0.15
    )  # odds of 4, a draw's noise is its signal


def test_the_readme_says_what_the_shipped_report_found():
    gains = {row["estimator"]: row for row in json.loads((DATA / "efficiency.json").read_text())["gains"]}
    readme = " ".join(README.read_text().split())
    for phrase, gain in (
        ("the covariance takes {} times fewer CPU seconds", gains["covariance_quads"]),
        ("the two-chain value {} times", gains["two_chain_quads"]),
    ):
        values = (gain[key] for key in ("seconds", "seconds_low", "seconds_high"))
        number, low, high = (f"{value:.3g}" if value > 100 else f"{value:.2g}" for value in values)
        assert phrase.format(f"{number} ({low}-{high})") in readme
