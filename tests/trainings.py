"""Settings and text of a training of seconds."""

import numpy as np

from spectrobook.making.neox import Architecture
from spectrobook.making.settings import TrainingSettings

MICRO = Architecture(layers=2, heads=2, width=16, mlp=32, vocabulary=280, context=64)


SETTINGS = TrainingSettings(
    tokens=12 * 8 * 16,  # 12 steps
    length=16,
    batch_windows=8,
    micro_windows=2,
    warmup=2,
    decay=0.5,
    workers=1,
    sampling_windows=6,
    heldout_windows=6,
    checkpoint_steps=4,
    validation_steps=4,
    validation_windows=2,
    tokenizer_bytes=20_000,
    shape=MICRO,
)


WORDS = "alpha beta gamma delta draws chains tokens loss model weight step noise".split()


def text(seed: int) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS, 200))
