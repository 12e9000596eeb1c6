"""Gradients of every token, sketched: our way against torch.func's, at equal work, on one thread.

    python benchmarks/first_order.py                  # both shapes; a table in Markdown
    python benchmarks/first_order.py --shape bundled --repeats 5

Both give the same numbers: for every token of a window of 129, and every component, the gradient times the same sketch
of 64 columns. torch.func's way is `vmap` of `grad` over tokens, every component's weights at once, then the sketch by
matrix products; it gets a batch of tokens from the middle of the window, whose prefix costs what the average one does.
The two are compared before their times are.

Times are of this process's processor, so that they hold on a machine that others use; the fraction of the matmul rate
counts the operations that the result needs (`model.operations.gradient_operations`), not those spent.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from spectrolib import load_model
from spectrolib.model.components import names
from spectrolib.model.engine import Engine
from spectrolib.model.gradients import TokenGradients
from spectrolib.model.layers import forward
from spectrolib.model.loading import engine_of
from spectrolib.model.operations import gradient_operations
from spectrolib.model.shapes import tensors
from spectrolib.run.cost import matmul_rate

LENGTH, WIDTH = 129, 64
TOGETHER = {"bundled": 16, "pythia-14m": 8}
"""Tokens that torch.func takes at once: its dense gradients of a large vocabulary need 52 MB each."""


def at_start(shape: str) -> Engine:
    """The bundled model, or random weights in Pythia-14M's shape."""
    bundled = engine_of(load_model("bundled", device="cpu"))
    if shape == "bundled":
        return bundled
    sizes = replace(bundled.shape, vocabulary=50304)
    generator = torch.Generator().manual_seed(0)
    random = {name: 0.02 * torch.randn(size, generator=generator) for name, size in tensors(sizes)}
    return Engine(sizes, {name: w + ("norm.weight" in name) for name, w in random.items()})


def theirs(engine: Engine, sketcher: TokenGradients, ids: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Sketches of some tokens of a window by torch.func."""
    shape, inputs = engine.shape, ids[None, : int(tokens[-1]) + 1]
    chosen = torch.eye(inputs.shape[1])[tokens]

    def loss(weights: dict, at: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        logits = weights[shape.unembed] @ (at @ forward(weights, shape, engine.rotary, inputs)[0])
        return logits.logsumexp(dim=0) - logits.gather(0, target[None])[0]

    with sdpa_kernel(SDPBackend.MATH):
        each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))
        found = each(engine.weights, chosen, ids[tokens + 1])
    return torch.stack([_sketched(engine, sketcher, name, found) for name in sketcher.components], dim=1)


def _sketched(engine: Engine, sketcher: TokenGradients, component: str, found: dict) -> torch.Tensor:
    """A component's dense gradients, sketched."""
    total = 0
    for i, block in enumerate(sketcher.blocks[component]):
        gradient, sketch = found[block.parameter][(slice(None), *block.index)], sketcher.sketches[component, i][0]
        for axis, side in enumerate(sketch.sides, 1):
            if side.reduce is not None:
                gradient = torch.tensordot(gradient, side.reduce, dims=([axis], [0])).movedim(-1, axis)
        total = total + sketch(gradient)
    return total


def seconds(run, repeats: int) -> float:
    """Processor seconds, the median of some runs after one that warms up."""
    times = []
    for _ in range(repeats + 1):
        begin = time.process_time()
        run()
        times.append(time.process_time() - begin)
    return statistics.median(times[1:])


def compare(shape: str, repeats: int) -> dict:
    """Both ways on one shape."""
    torch.set_num_threads(1)
    engine = at_start(shape)
    time_steps, together = LENGTH - 1, TOGETHER[shape]
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, engine.shape.vocabulary, LENGTH))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sketcher = TokenGradients(engine, names(engine.shape), width=WIDTH, halves=1)
    ours = time_steps / seconds(lambda: next(sketcher(ids[None])), repeats)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tokens = torch.arange(time_steps // 2 - together // 2, time_steps // 2 + together // 2)
    expected = next(sketcher(ids[None])).rows[0, tokens]
    got = theirs(engine, sketcher, ids, tokens)
    if not (got - expected).norm() < 1e-4 * expected.norm():
        raise SystemExit(f"{shape}: the two ways disagree by {(got - expected).norm() / expected.norm():.1e}")
    plain = together / seconds(lambda: theirs(engine, sketcher, ids, tokens), 1)
    matmul_rate.cache_clear()
    rate, needed = matmul_rate(), gradient_operations(engine.shape, time_steps, WIDTH, halves=1)
    return {
        "shape": shape,
        "tokens_per_second": {"ours": ours, "torch.func": plain},
        "ratio": ours / plain,
        "operations_per_token": needed,
        "matmul_gflops": rate / 1e9,
        "matmul_fraction": ours * needed / rate,
        "memory_mb": (peak - before) / 1024,
    }


def table(rows: list[dict]) -> str:
    """The comparison in Markdown."""
    lines = [
        "| model | torch.func, tokens/s | spectrolib, tokens/s | ratio | of matmul rate | memory, MB |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        speed = row["tokens_per_second"]
        lines.append(
            f"| {row['shape']} | {speed['torch.func']:.1f} | {speed['ours']:.0f} | {row['ratio']:.1f} "
            f"| {row['matmul_fraction']:.0%} of {row['matmul_gflops']:.0f} GFLOP/s | {row['memory_mb']:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=TOGETHER, action="append", help="which model; both by default")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    options = parser.parse_args()
    spawn, rows = multiprocessing.get_context("spawn"), []
    with ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as pool:  # peaks of memory are a process's
        for shape in options.shape or TOGETHER:
            rows.append(pool.submit(compare, shape, options.repeats).result())
    print(table(rows))
    if options.json:
        options.json.write_text(json.dumps({"torch": torch.__version__, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
