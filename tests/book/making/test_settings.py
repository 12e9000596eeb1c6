"""Settings of a training: the schedule, what is refused."""

from dataclasses import replace

import numpy as np
import pytest
from trainings import SETTINGS


def test_learning_rate_rises_stays_and_falls():
    rates = [SETTINGS.rate(step) for step in range(SETTINGS.steps)]
    assert SETTINGS.steps == 12
    assert rates[:7] == [0.5, 1, 1, 1, 1, 1, 1]
    np.testing.assert_allclose(rates[6:], np.linspace(1, 1 / 6, 6))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": 0}, "tokens must be positive"),
        ({"muon_lr": -1.0}, "muon_lr must be positive"),
        ({"decay": 0.0}, "decay must be in"),
        ({"batch_windows": 6, "micro_windows": 4}, "multiple of workers"),
    ],
)
def test_settings_reject(change, message):
    with pytest.raises(ValueError, match=message):
        replace(SETTINGS, **change)
