r"""The two control measurements that ship beside the book's: at nβ = 0, and of a model that has learned nothing.

    python benchmarks/controls.py runs/controls            # half an hour on two cores; goes on where it was stopped
    python benchmarks/controls.py runs/controls --ship     # and writes them into the package

Both have the settings of profile `book`, but for what they change, with two teams of chains in place of four, and every
other of its probe windows. So compare them with the rows that half of the book's teams give.

* ``zero``: nβ = 0, the Gaussian around w*. Its teams run at nβ = ±tilt, so that the covariance is a response here too.
* ``untrained``: the entries of each weight tensor shuffled: the same numbers, nothing learned.
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np

KEPT = ("susceptibility", "covariance", "half_susceptibility", "loss", "loss_rise", "rise")
"""Variables that ship."""


def plans(folder: Path) -> dict:
    """The plan of each control."""
    from spectrolib import Plan, load_model
    from spectrolib.run.plan import profile_windows
    from spectrolib.run.profiles import get

    profile, model = get("book"), load_model("bundled")
    windows = profile_windows(profile, model)
    windows["probe"] = windows["probe"].take(np.arange(0, len(windows["probe"]), 2))
    settings = replace(profile.settings, chains=2)
    return {
        "zero": Plan(model=model, settings=replace(settings, nbeta=0.0), **windows),
        "untrained": Plan(model=shuffled(model, folder / "shuffled"), settings=settings, **windows),
    }


def shuffled(model, folder: Path, seed: int = 0):
    """The model with the entries of each tensor shuffled, as a folder in the hub's format."""
    from safetensors.torch import save_file

    from spectrolib import load_model
    from spectrolib.model.activations import untrained

    if not (folder / "model.safetensors").exists():
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
            shutil.copy(model.path / name, folder)
        weights = untrained(model, seed).weights
        save_file({name: tensor.half().contiguous() for name, tensor in weights.items()}, folder / "part")
        (folder / "part").rename(folder / "model.safetensors")
    made = load_model(str(folder))
    made.name = f"{model.name}, weights shuffled"
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", choices=["zero", "untrained"])
    parser.add_argument("--ship", action="store_true", help="write them into the package too")
    arguments = parser.parse_args()
    from spectrobook.shipped import SHIPPED

    import spectrolib
    from spectrolib.run.store import open_result, pack

    for name, plan in plans(arguments.folder).items():
        if arguments.only in (None, name):
            spectrolib.measure(plan, arguments.folder / name)
            if arguments.ship:
                file = Path(spectrolib.__file__).parent / "bundled" / f"{SHIPPED[name]}.zarr.zip"
                pack(open_result(arguments.folder / name), file, KEPT)


if __name__ == "__main__":
    main()
