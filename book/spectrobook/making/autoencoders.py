"""The autoencoders that ship with the library, trained again."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from spectrolib.dictionaries.autoencoders import Autoencoder, Recipe, health, train
from spectrolib.dictionaries.formats import save
from spectrolib.model.activations import activations, untrained
from spectrolib.model.loading import engine_of, load_model
from spectrolib.text.corpus import Windows, bundled_windows

SHIPPED = (
    ("l2-1024-k16", "l2 residual", Recipe(features=1024, k=16)),
    ("l3-1024-k16", "l3 residual", Recipe(features=1024, k=16)),
    ("l4-1024-k16", "l4 residual", Recipe(features=1024, k=16)),
    ("l3-512-k16", "l3 residual", Recipe(features=512, k=16)),
    ("l3-2048-k16", "l3 residual", Recipe(features=2048, k=16)),
    ("l3-512-k32", "l3 residual", Recipe(features=512, k=32)),
    ("l3mlp-512-k16", "l3 mlp", Recipe(features=512, k=16)),
    ("untrained-l3-1024-k16", "l3 residual", Recipe(features=1024, k=16)),
)
"""Name, site and recipe. The last is for the model with shuffled weights (`untrained`, seed 0)."""

README = """# Sparse autoencoders for the bundled model

TopK autoencoders, in the folder format of sparsify: `NAME/SITE/cfg.json` and `sae.safetensors` (float16), with a
`card.json` that has the recipe, the hash of the model, the text, and the health on unseen windows. The name says layer,
features and k: `l3-1024-k16` is for the residual stream after layer 3, `l3mlp-...` for what the MLP of layer 3 adds.
`untrained-...` is a control, for the same model with its weights shuffled within each tensor.

Read one with `spectrolib.dictionaries.formats.load("bundled/l3-1024-k16")`. Make all of them again with
`python -m spectrobook autoencoders`: a few minutes on one thread, and the same bytes for the same versions.
"""


def training_windows() -> tuple[Windows, Windows]:
    """What the shipped autoencoders are trained on, and the held-out windows that their health is measured on.

    No measurement of the book has these held-out windows as its probe.
    """
    heldout = bundled_windows("heldout")
    return bundled_windows("sampling"), heldout.take(np.arange(len(heldout)) % 3 == 1)


def remake(folder: str | Path, report: Callable[[str], None] = print) -> Path:
    """Train the autoencoders of `SHIPPED` on the bundled model, and write them with their cards: some minutes.

    Those that the folder holds already stay as they are.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(README, encoding="utf-8")
    model, (text, heldout) = load_model("bundled", device="cpu"), training_windows()
    for name, site, recipe in SHIPPED:
        if any((folder / name).glob("*/card.json")):  # which is written last
            continue
        begin = time.process_time()
        engine = untrained(model) if name.startswith("untrained") else engine_of(model)
        x = activations(engine, text, site)
        found = _rounded(train(x.reshape(-1, x.shape[-1]), recipe, site=site))
        seconds = round(time.process_time() - begin, 1)
        measured = health(found, engine, heldout)
        card = {
            **found.card,
            "model": "bundled, its weights shuffled" if name.startswith("untrained") else "bundled",
            "model_hash": model.hash,
            "text": {"trained_on": text.hash, "health_on": heldout.hash},
            "health": measured.summary(),
            "cpu_seconds": seconds,
            "versions": {"spectrolib": version("spectrolib"), "torch": torch.__version__, "numpy": np.__version__},
        }
        save(replace(found, card=card), folder / name)
        report(
            f"{name}: explained variance {measured.explained_variance:.3f}, loss recovered {measured.recovered:.3f}, "
            f"dead {measured.dead:.3f}, {seconds:.0f} s"
        )
    return folder


def _rounded(autoencoder: Autoencoder) -> Autoencoder:
    """As float16 has it, so that the health is that of the file."""
    tensors = {name: w for name, w in vars(autoencoder).items() if isinstance(w, Tensor)}
    return replace(autoencoder, **{name: w.half().float() for name, w in tensors.items()})
