"""`spectro train`: what it refuses."""

from commands import refused


def test_train_refuses_bad_settings(tmp_path):
    assert "tokens must be positive, got 0" in refused("train", "--out", tmp_path / "run", "--tokens", 0)
    assert not (tmp_path / "run").exists()
