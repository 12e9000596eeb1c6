"""`spectro tune`: trials, a choice, and a measurement with what was chosen."""

import json
from dataclasses import replace

from commands import refused, spectro

from spectrolib.posterior import Settings
from spectrolib.run import tuning


def tune(folder, text, tmp_path) -> tuple:
    where = ("--out", tmp_path / "tune", "--model", folder, "--text", text)
    return ("tune", *where, "--components", "l0h0", "--workers", 1)


def test_tune_then_measure(folder, text, small, tmp_path, monkeypatch):
    monkeypatch.setattr(
        tuning, "grid", lambda base: [replace(base, gamma=g, draws=16, chains=4) for g in (300.0, 900.0)]
    )
    monkeypatch.setattr(tuning, "verdict", lambda result: (tuning.HEALTHY, "as planted"))  # an untrained model has none
    code, out, error = spectro(*tune(folder, text, tmp_path))
    assert code == 0, error
    assert out.count("R-hat") == 2 and "γ 300" in out and "γ 900" in out
    assert (tmp_path / "tune" / "traces.html").read_text().count("<h2>") == 2
    chosen = Settings(**json.loads((tmp_path / "tune" / "settings.json").read_text())["settings"])
    assert chosen.gamma in (300.0, 900.0) and chosen.draws == small.settings.draws
    assert "spectro measure --settings" in out and "as planted" in out


def test_measure_takes_settings_and_what_is_named_beside_them_goes_first(folder, text, small, tmp_path):
    own = replace(small.settings, gamma=777.0, nbeta=5.0, tilt=5.0)
    tuning.write_settings(tuning.Trial(own, tuning.HEALTHY, "", 1.0), tmp_path / "settings.json")
    run = ("measure", "--model", folder, "--text", text, "--out", tmp_path / "run", "--dry-run")
    out = spectro(*run, "--settings", tmp_path / "settings.json", "--nbeta", 6)[1]
    assert "nβ 6, γ 777" in out
    assert "manifest.json cannot be read" in refused(*run, "--settings", tmp_path)


def test_no_healthy_trial_is_one_line(folder, text, small, tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "grid", lambda base: [replace(base, gamma=1e-3, step_size=1e-3)])
    code, out, error = spectro(*tune(folder, text, tmp_path))
    assert code == 2 and "not local" in out
    assert error.startswith("error: none of 1 trials is healthy") and error.count("\n") == 1
    assert not (tmp_path / "tune" / "settings.json").exists()
