"""A trained run as a model folder in the hub's format: float16 weights, tokenizer, windows, losses, model card."""

from __future__ import annotations

import json
import math
import platform
import shutil
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from spectrolib.text.corpus import encode, read_windows

from .installed import DOMAINS
from .neox import Architecture, hidden_states, window_losses
from .settings import TrainingSettings

if TYPE_CHECKING:
    from tokenizers import Tokenizer


_PROMPTS = (
    "def __init__(self,",
    "Parameters\n----------\nx :",
    "Permission is hereby granted",
    "#include <",
    ">>> import numpy as np\n>>>",
)


def export(settings: TrainingSettings, run: Path, folder: Path) -> Path:
    """Write the last checkpoint of a run as a model folder, with `training.json` and a model card.

    Losses and samples are those of the rounded weights.
    """
    from safetensors.torch import save_file
    from tokenizers import Tokenizer

    folder.mkdir(parents=True, exist_ok=True)
    state = torch.load(run / "checkpoint.pt", weights_only=True, map_location="cpu")
    rounded = {name: weight.half().contiguous() for name, weight in state["weights"].items()}
    save_file(rounded, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    write_json(folder / "config.json", settings.shape.config())
    write_json(folder / "generation_config.json", {"bos_token_id": 0, "eos_token_id": 0, "_from_model_config": True})
    for file in ("tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json", "windows.npz"):
        shutil.copy(run / file, folder)
    weights = {name: weight.float() for name, weight in rounded.items()}
    losses, windows = {}, {}
    for split in ("sampling", "heldout"):
        pool = read_windows(run / "windows.npz", split)
        per_window = window_losses(weights, torch.from_numpy(pool.ids.astype(np.int64)), settings.shape)
        losses[split] = domain_means(per_window.numpy(), pool.domain)
        windows[split] = len(pool)
    summary = _summary(settings, run, state, losses) | {"windows": windows}
    write_json(folder / "training.json", summary)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    samples = [sample(weights, settings.shape, tokenizer, prompt, seed=settings.seed) for prompt in _PROMPTS]
    (folder / "README.md").write_text(model_card(summary, samples), encoding="utf-8")
    return folder


def write_json(file: Path, content: object) -> None:
    """Write JSON, indented, with a last newline."""
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def domain_means(losses: Float[ndarray, " windows"], domain: ndarray) -> dict[str, float]:
    """Mean loss of each domain, and under "mean" the mean over the domains."""
    means = {str(d): float(losses[domain == d].mean(dtype=np.float64)) for d in sorted(set(domain))}
    return means | {"mean": float(np.mean(list(means.values())))}


def _summary(settings: TrainingSettings, run: Path, state: dict, losses: dict) -> dict:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    curve = [line for line in lines if "loss" in line]
    speeds = [line["tokens_per_s"] for line in curve if line["tokens_per_s"]]
    return {
        "settings": asdict(settings),
        "steps": state["step"],
        "tokens": state["step"] * settings.step_tokens,
        "finished": state["step"] == settings.steps,
        "hours": round(state["seconds"] / 3600, 3),
        "tokens_per_s": round(float(np.median(speeds))) if speeds else None,
        "stream_tokens": (run / "stream.u16").stat().st_size // 2,
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        "loss": losses,
        "curve": [[c["tokens"], round(c["loss"], 4)] for c in curve[:: max(1, math.ceil(len(curve) / 250))]],
        "validation": [
            [line["tokens"], round(line["validation"]["mean"], 4)] for line in lines if "validation" in line
        ],
        "corpus": json.loads((run / "manifest.json").read_text()),
    }


@torch.no_grad()
def sample(
    weights: dict[str, Tensor],
    shape: Architecture,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    tokens: int = 60,
    temperature: float = 0.7,
    seed: int = 0,
) -> str:
    """A continuation of a prompt, prompt included; what cannot be printed shows as the replacement character."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.from_numpy(encode(tokenizer, prompt).astype(np.int64))[None]
    for _ in range(tokens):
        logits = hidden_states(weights, ids, shape)[0, -1] @ weights["embed_out.weight"].T
        token = torch.multinomial(torch.softmax(logits / temperature, 0), 1, generator=generator)
        ids = torch.cat([ids, token[None]], dim=1)
    text = tokenizer.decode(ids[0].tolist(), skip_special_tokens=False)
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def model_card(summary: dict, samples: list[str]) -> str:
    """The README.md of a model folder."""
    settings, corpus, loss = summary["settings"], summary["corpus"], summary["loss"]
    shape, domains = settings["shape"], corpus["domains"]
    epochs = summary["tokens"] / summary["stream_tokens"]
    way = ", ".join(f"{value:.2f} at {tokens / 1e6:.1f} M" for tokens, value in summary["validation"][-5:])
    rows = [
        f"| {name} | {DOMAINS[name].what if name in DOMAINS else ''} | {entry['bytes'] / 1e6:.2f} | "
        f"{loss['sampling'].get(name, math.nan):.3f} | {loss['heldout'].get(name, math.nan):.3f} |"
        for name, entry in domains.items()
    ]
    licences = "; ".join(sorted(set(corpus["licences"].values())))
    skipped = "; ".join(f"{name} ({licence})" for name, licence in corpus["skipped"].items()) or "none"
    blocks = [
        "---\nlibrary_name: transformers\nlicense: mit\npipeline_tag: text-generation\n"
        "tags: [gpt_neox, pythia, interpretability]\n---",
        "# The bundled model",
        _fill(f"""
            A GPT-NeoX with Pythia-14M's body ({shape["layers"]} layers, {shape["heads"]} heads, width {shape["width"]},
            MLP {shape["mlp"]}, rotary {shape["rotary"]}, parallel residual, untied) over a byte-level BPE of
            {shape["vocabulary"]} tokens: small enough to travel with the library, so that every chapter runs on a
            trained model without a network. It is a subject for measurements. It is no assistant, and it knows
            nothing."""),
        "## Data",
        _fill(f"""
            The *installed corpus*: text that ships inside Python and {len(corpus["distributions"])} installed
            distributions, {corpus["bytes"] / 1e6:.0f} MB in {len(domains)} domains;
            {summary["stream_tokens"] / 1e6:.1f} M tokens to train on. Caps per domain and distribution. Texts that
            occur twice are taken once, licences by paragraph. Minified, binary and base64-like files are left out.
            Documents are held out by the hash of their name. Near-duplicates (generated headers, sibling modules) may
            fall on both sides, so the held-out loss flatters a little."""),
        "## Recipe",
        _fill(f"""
            {summary["tokens"] / 1e6:.1f} M tokens in {summary["steps"]} steps of {settings["batch_windows"]} x
            {settings["length"]} tokens, which visits {min(1, epochs):.0%} of the training text
            ({epochs:.2f} epochs). Muon (peak rate {settings["muon_lr"]}) for the matrices inside the layers, AdamW
            ({settings["adam_lr"]}) for the rest. {settings["warmup"]} steps of warm-up, a constant rate, a linear decay
            to zero over the last {settings["decay"]:.0%} of the steps. Seed {settings["seed"]}.
            {settings["workers"]} processes with one thread each, {summary["hours"]:.1f} h,
            {summary["tokens_per_s"]} tokens/s. Windows start anywhere in a stream of documents separated by
            `<|endoftext|>`, so no token marks the start of a window. Held-out loss on the way, on
            {settings["validation_windows"]} windows of each domain: {way} tokens. `training.json` has all settings,
            versions, the loss curve and the corpus manifest. Made by `python -m spectrobook model`."""),
        "## Loss",
        _fill(f"""
            Nats per token on the windows of `windows.npz` ({summary["windows"]["sampling"]} from the training text,
            {summary["windows"]["heldout"]} held out), with the float16 weights of this folder. A uniform guess is
            {math.log(shape["vocabulary"]):.2f}."""),
        "\n".join(
            [
                "| domain | what | MB | train | held out |",
                "|---|---|---|---|---|",
                *rows,
                f"| **mean over domains** | | | **{loss['sampling']['mean']:.3f}** | "
                f"**{loss['heldout']['mean']:.3f}** |",
            ]
        ),
        "## Samples",
        f"Temperature 0.7, {len(samples)} prompts, the first sample of each.",
        *(f"````text\n{text}\n````" for text in samples),
        "## Limits",
        _fill(f"""
            Trained for {epochs:.2f} epochs on technical text, in windows of {settings["length"]} tokens: it knows the
            surface of code, licences and documentation, repeats itself, and knows little of meaning. Positions beyond
            {settings["length"]} were never trained. Small domains are learned poorly. Results on it are not results on
            Pythia."""),
        "## Licences",
        _fill(f"""
            The weights are under the library's MIT licence. `windows.npz` holds short excerpts of the texts, under the
            licences of their distributions, and names distribution and licence of each excerpt. Stated licences:
            {licences}. Left out for their terms: {skipped}."""),
    ]
    return "\n\n".join(blocks) + "\n"


def _fill(paragraph: str) -> str:
    return textwrap.fill(" ".join(paragraph.split()), 110, break_long_words=False, break_on_hyphens=False)
