"""Settings of one training of the bundled model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .neox import Architecture

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class TrainingSettings:
    """Settings of one training."""

    tokens: int = 50_000_000
    """tokens to train on, over all epochs"""
    length: int = 256
    """predictions per training window"""
    batch_windows: int = 32
    """windows per step"""
    micro_windows: int = 4
    """windows per forward pass: small enough for the activations to stay in the cache"""
    muon_lr: float = 0.02
    """peak learning rate of the matrices inside the layers"""
    adam_lr: float = 3e-3
    """peak learning rate of embedding, unembedding, norms and biases"""
    weight_decay: float = 0.02
    warmup: int = 100
    """steps of linear warm-up"""
    decay: float = 0.2
    """last part of the steps, over which the learning rate falls linearly to zero"""
    workers: int = 2
    """processes with one thread each; on CUDA there is one"""
    sampling_windows: int = 1024
    """windows of the training text that go with the model"""
    heldout_windows: int = 480
    """held-out windows that go with the model, and on which it is evaluated"""
    checkpoint_steps: int = 100
    validation_steps: int = 250
    validation_windows: int = 10
    """held-out windows per domain for the validations under way"""
    tokenizer_bytes: int = 25_000_000
    """text the tokenizer is trained on"""
    device: str = "cpu"
    seed: int = 0
    shape: Architecture = field(default_factory=Architecture)

    def __post_init__(self) -> None:
        for name in (
            "tokens length batch_windows micro_windows muon_lr adam_lr workers checkpoint_steps validation_steps "
            "validation_windows tokenizer_bytes sampling_windows heldout_windows"
        ).split():
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not 0 < self.decay <= 1:
            raise ValueError(f"decay must be in (0, 1], got {self.decay}")
        if self.batch_windows % (self.workers * self.micro_windows):
            raise ValueError(
                f"batch_windows ({self.batch_windows}) must be a multiple of workers * micro_windows "
                f"({self.workers} * {self.micro_windows})"
            )

    @property
    def step_tokens(self) -> int:
        return self.batch_windows * self.length

    @property
    def steps(self) -> int:
        return max(1, round(self.tokens / self.step_tokens))

    def rate(self, step: int) -> float:
        """Learning rate of a step as a part of the peak: warm-up, stable, linear decay."""
        falling = (self.steps - step) / max(1, round(self.decay * self.steps))
        return min(1.0, (step + 1) / max(1, self.warmup), falling)
