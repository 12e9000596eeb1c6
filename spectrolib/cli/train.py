"""``spectro train``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from .terminal import one_line_errors


def train(
    out: Annotated[Path, typer.Option(help="Run folder; the model is written to OUT/model.")],
    tokens: Annotated[int | None, typer.Option(help="Tokens to train on.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of weights and data order.")] = 0,
    workers: Annotated[int | None, typer.Option(help="Processes, each on one thread.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Train the bundled model's tokenizer and weights on the text that ships with the installed packages."""
    with one_line_errors():
        from spectrobook.making.settings import TrainingSettings
        from spectrobook.making.training import train as carry_out

        given = {"tokens": tokens, "workers": workers}
        settings = TrainingSettings(
            seed=seed, device=device, **{name: value for name, value in given.items() if value is not None}
        )
        folder = carry_out(settings, out)
        losses = json.loads((folder / "training.json").read_text())["loss"]
        print(f"{folder}: validation loss {losses['heldout']['mean']:.3f} nats per token")
