"""The engine against the authors' library, devinterp 2.0.1, at equal statistical work.

    python benchmarks/engine.py                       # the first two shapes; a table in Markdown, the numbers as JSON
    python benchmarks/engine.py --shape bundled --repeats 3

Both tools sample the same components of the same model with the same draws, steps, batches, loss windows and probe
windows. Every run is a process of its own, and the two take turns, so that the ratios hold on a machine whose speed
drifts. Times leave out imports, loading and the start of worker processes. `unembed` is left out: devinterp 2.0.1 does
not find it with transformers 5.13 or later.

* one core: one thread for each tool;
* whole machine: two processes of one thread for ours (as `measure` runs them), two threads for devinterp.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

SHAPES = {
    "bundled": {"vocabulary": 4096, "length": 129, "probe": 24, "loss": 8, "batch": 8, "draws": 3, "steps": 4},
    "pythia-14m": {"vocabulary": 50304, "length": 65, "probe": 8, "loss": 8, "batch": 8, "draws": 3, "steps": 2},
    "gpt2": {"vocabulary": 4096, "length": 129, "probe": 24, "loss": 8, "batch": 8, "draws": 3, "steps": 4},
    "llama": {"vocabulary": 4096, "length": 129, "probe": 24, "loss": 8, "batch": 8, "draws": 3, "steps": 4},
}
"""The last two have the bundled model's sizes in other families, with random weights: embeddings tied, and in the Llama
two query heads to a head of keys and values."""
LAYERS = (1, 4)
"""An early and a late layer; with the embedding and the whole model, a third of a full measurement."""
NBETA, GAMMA, STEP_SIZE, CHAINS = 10.0, 300.0, 1e-3, 2


def plan(shape: str, device: str = "cpu", **other: int):
    """The work, as our plan; ``other`` sizes replace those of `SHAPES`."""
    import numpy as np
    import torch

    import spectrolib
    from spectrolib.model.components import layer_of
    from spectrolib.model.loading import LanguageModel
    from spectrolib.posterior import Settings
    from spectrolib.text.corpus import Windows

    size = SHAPES[shape] | other
    if shape == "bundled":
        model = spectrolib.load_model("bundled", device=device)
    else:
        torch.manual_seed(0)
        model = LanguageModel(random_weights(shape).to(device), None, f"{shape}'s shape, random weights")

    def windows(count: int, seed: int) -> Windows:
        ids = np.random.default_rng(seed).integers(0, size["vocabulary"], (count, size["length"]))
        return Windows(ids, np.full(count, "random"), np.full(count, "random"))

    settings = Settings(
        nbeta=NBETA,
        gamma=GAMMA,
        step_size=STEP_SIZE,
        preconditioner="none",
        batch_size=size["batch"],
        chains=CHAINS,
        draws=size["draws"],
        steps_between_draws=size["steps"],
    )
    return spectrolib.Plan(
        model=model,
        sampling=windows(64, 0),
        loss=windows(size["loss"], 1),
        probe=windows(size["probe"], 2),
        settings=settings,
        components=tuple(c for c in spectrolib.components(model) if layer_of(c) in LAYERS or c == "embed"),
        blocks=1,
    )


def random_weights(shape: str):
    """A transformers model of the shape, with the body of Pythia-14M as far as the family has it."""
    from transformers import GPT2Config, GPTNeoXConfig, LlamaConfig, models

    sizes = dict(num_hidden_layers=6, num_attention_heads=4, hidden_size=128, intermediate_size=512)
    sizes |= dict(vocab_size=SHAPES[shape]["vocabulary"])
    if shape == "pythia-14m":
        config = GPTNeoXConfig(**sizes, rotary_pct=0.25, max_position_embeddings=2048, use_parallel_residual=True)
        return models.gpt_neox.GPTNeoXForCausalLM(config)
    if shape == "llama":
        config = LlamaConfig(**sizes, num_key_value_heads=2, tie_word_embeddings=True)
        return models.llama.LlamaForCausalLM(config)
    config = GPT2Config(n_layer=6, n_head=4, n_embd=128, vocab_size=sizes["vocab_size"])
    return models.gpt2.GPT2LMHeadModel(config)


def run_ours(work, workers: int, device: str = "cpu") -> float:
    """Seconds that our tool takes."""
    import torch

    from spectrolib.model.loading import engine_of
    from spectrolib.run.measure import measure
    from spectrolib.run.tasks import Job, run_task

    if workers > 1:
        forkserver = multiprocessing.get_context("forkserver")
        with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(workers, mp_context=forkserver) as pool:
            list(pool.map(_import, range(workers)))
            begin = time.perf_counter()
            measure(work, Path(folder) / "run", executor=pool, progress=False)
            return time.perf_counter() - begin
    torch.set_num_threads(1)
    job = Job("", device, work.sampling.ids, work.loss.ids, work.probe.ids, work.settings, work.blocks)
    begin = time.perf_counter()
    engine = engine_of(work.model)
    for task in work.tasks:
        run_task(engine, job, task)
    return time.perf_counter() - begin


def _import(worker: int) -> None:
    """What a worker needs, loaded; long enough for every worker to get one call."""
    import spectrolib.run.workers  # noqa: F401

    time.sleep(1)


def run_devinterp(work, threads: int, device: str = "cpu") -> float:
    """Seconds that devinterp takes."""
    import logging
    import warnings

    import torch
    from datasets import Dataset
    from devinterp.slt.susceptibilities import susceptibilities

    from spectrolib.model.components import blocks

    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(threads)
    settings, module = work.settings, work.model.model.requires_grad_(True)
    parameters = dict(module.named_parameters())

    def mask(component: str) -> dict:
        masks = {}
        for block in blocks(component, work.shape):
            name = "lm_head.weight" if block.parameter == work.shape.where.unembed else block.parameter
            if block.index:
                masks[name] = torch.zeros_like(parameters[name], dtype=torch.bool)
                masks[name][block.index] = True
            else:
                masks[name] = None
        return masks

    def dataset(windows) -> Dataset:
        return Dataset.from_dict({"input_ids": windows.ids.tolist()}).with_format("torch")

    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        susceptibilities(
            module,
            dataset(work.sampling),
            {
                "loss": (dataset(work.loss), len(work.loss) // settings.batch_size),
                "probe": (dataset(work.probe), len(work.probe) // settings.batch_size),
            },
            {"full": None} | {name: mask(name) for name in work.components},
            sampling_task="loss",
            lr=settings.step_size,
            n_beta=settings.nbeta,
            localization=settings.gamma,
            num_chains=settings.chains,
            num_draws=settings.draws,
            num_steps_bw_draws=settings.steps_between_draws,
            batch_size=settings.batch_size,
            num_init_loss_batches=1,
            device=device,
            output_path=Path(folder) / "samples.zarr",
        )
    return time.perf_counter() - begin


def one(tool: str, shape: str, cores: int) -> None:
    """One run, in this process: prints seconds and memory as JSON."""
    from spectrolib.run.cost import of

    work = plan(shape)
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = run_ours(work, cores) if tool == "ours" else run_devinterp(work, cores)
    own, children = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    counted = of(work)
    print(
        json.dumps(
            {
                "seconds": seconds,
                "memory_mb": (own - base) / 1024 if cores == 1 else max(own, children) / 1024,
                "operations": counted.operations,
                "tokens": counted.token_steps + counted.token_evaluations,
            }
        )
    )


def spawn(tool: str, shape: str, cores: int) -> dict:
    """One run, in a process of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": str(cores), "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    arguments = [sys.executable, __file__, "--one", tool, "--shape", shape, "--cores", str(cores)]
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.strip().splitlines()[-1])


def compare(shape: str, cores: int, repeats: int) -> dict:
    """Both tools in turn; medians, and the ratio pair by pair."""
    from spectrolib.run.cost import matmul_rate

    ours, theirs, rates = [], [], []
    for _ in range(repeats):
        ours.append(spawn("ours", shape, cores))
        theirs.append(spawn("devinterp", shape, cores))
        matmul_rate.cache_clear()
        rates.append(matmul_rate())
    ratios = [b["seconds"] / a["seconds"] for a, b in zip(ours, theirs, strict=True)]
    fractions = [a["operations"] / a["seconds"] / (cores * rate) for a, rate in zip(ours, rates, strict=True)]
    middle = lambda runs, key: statistics.median(run[key] for run in runs)  # noqa: E731
    return {
        "shape": shape,
        "cores": cores,
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "seconds": {"ours": middle(ours, "seconds"), "devinterp": middle(theirs, "seconds")},
        "tokens_per_second": {
            "ours": ours[0]["tokens"] / middle(ours, "seconds"),
            "devinterp": ours[0]["tokens"] / middle(theirs, "seconds"),
        },
        "memory_mb": {"ours": middle(ours, "memory_mb"), "devinterp": middle(theirs, "memory_mb")},
        "matmul_fraction": statistics.median(fractions),
        "matmul_gflops_one_thread": statistics.median(rates) / 1e9,
    }


def table(rows: list[dict]) -> str:
    """The comparison in Markdown."""
    lines = [
        "| model | cores | devinterp, s | spectrolib, s | ratio (range) | tokens/s | memory, MB | of matmul rate |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        low, high = min(row["ratios"]), max(row["ratios"])
        memory = f"{row['memory_mb']['devinterp']:.0f} / {row['memory_mb']['ours']:.0f}"
        lines.append(
            f"| {row['shape']} | {row['cores']} | {row['seconds']['devinterp']:.1f} | {row['seconds']['ours']:.1f} "
            f"| {row['ratio']:.1f} ({low:.1f}-{high:.1f}) | {row['tokens_per_second']['ours']:,.0f} | {memory} "
            f"| {row['matmul_fraction']:.0%} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, action="append", help="which model; the first two by default")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cores", type=int, choices=(1, 2), action="append", help="1, 2; both by default")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    parser.add_argument("--one", choices=("ours", "devinterp"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one(options.one, options.shape[0], options.cores[0])
        return
    rows = []
    for shape in options.shape or list(SHAPES)[:2]:
        for cores in options.cores or (1, 2):
            rows.append(compare(shape, cores, options.repeats))
            print(table(rows[-1:]) if len(rows) == 1 else table(rows[-1:]).splitlines()[-1], flush=True)
    if options.json:
        from importlib.metadata import version

        versions = {name: version(name) for name in ("torch", "transformers", "devinterp")}
        options.json.write_text(json.dumps({"versions": versions, "work": SHAPES, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
