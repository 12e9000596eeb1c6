"""Training the bundled model: a byte-level BPE and a small GPT-NeoX on the installed corpus.

The body is Pythia-14M's (6 layers, 4 heads, width 128, MLP 512, rotary 0.25, parallel residual, untied) over a
vocabulary of 4 096. `train` writes a model folder in the hub's format. It can be interrupted at any moment: started
again with the same settings and run folder, it continues from the last checkpoint and ends in the same bits.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Int
from numpy import ndarray
from torch import Tensor

from spectrolib.run.files import write_whole
from spectrolib.run.measure import WorkerDied
from spectrolib.text.corpus import Document, Windows, read_windows, windows_from_documents, write_windows

from .bundle import domain_means, export, write_json
from .installed import Corpus, installed_corpus
from .neox import Architecture, initial_weights, total_loss, window_losses
from .optimiser import Optimiser
from .settings import TrainingSettings

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END = "<|endoftext|>"


# ---------------------------------------------------------------------------------------------------------------------
# Tokenizer and token stream


def train_tokenizer(texts: Iterable[str], vocabulary: int = 4096) -> Tokenizer:
    """A byte-level BPE like GPT-NeoX's: `<|endoftext|>` is token 0, then the 256 bytes, then merges."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def balanced(documents: Iterable[Document], budget: int) -> list[str]:
    """Texts of about `budget` characters: every domain gives the same, and what small ones lack the others share."""
    by_domain: dict[str, list[str]] = {}
    for document in documents:
        by_domain.setdefault(document.domain, []).append(document.text)
    texts = []
    for left, domain in enumerate(sorted(by_domain, key=lambda d: sum(map(len, by_domain[d])))):
        part = budget // (len(by_domain) - left)
        for text in by_domain[domain]:
            if part <= 0:
                break
            texts.append(text[:part])
            part -= len(texts[-1])
            budget -= len(texts[-1])
    return texts


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """The files of a fast tokenizer, as the hub has them."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        {
            "add_prefix_space": False,
            "bos_token": END,
            "clean_up_tokenization_spaces": False,
            "eos_token": END,
            "model_max_length": 2048,
            "tokenizer_class": "PreTrainedTokenizerFast",
            "unk_token": END,
        },
    )


def write_stream(documents: Iterable[Document], tokenizer: Tokenizer, file: Path) -> None:
    """Write all documents, each followed by `<|endoftext|>`, as uint16."""
    with file.open("wb") as out:
        for batch in _batches(documents, 64):
            for encoding in tokenizer.encode_batch([d.text for d in batch], add_special_tokens=False):
                np.array([*encoding.ids, 0], dtype=np.uint16).tofile(out)


def _batches(items: Iterable, size: int) -> Iterator[list]:
    batch = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def step_windows(
    stream: Int[ndarray, " tokens"], settings: TrainingSettings, step: int
) -> Int[ndarray, "windows length+1"]:
    """The windows of a step: each epoch visits the stream once, in a new order and from a new offset.

    A function of the seed and the step alone, so that resumption needs no state.
    """
    length, batch = settings.length, settings.batch_windows
    cells = (len(stream) - 1) // length - 1
    if cells < 1:
        raise ValueError(f"the training text has {len(stream)} tokens, too few for windows of {length}")
    rows = []
    for place in range(step * batch, (step + 1) * batch):
        order, offset = _epoch(settings.seed, place // cells, cells, length)
        start = offset + length * order[place % cells]
        rows.append(stream[start : start + length + 1])
    return np.stack(rows).astype(np.int64)


_epochs: dict[tuple, tuple[ndarray, int]] = {}


def _epoch(seed: int, epoch: int, cells: int, length: int) -> tuple[ndarray, int]:
    key = (seed, epoch, cells, length)
    if key not in _epochs:
        rng = np.random.default_rng([seed, epoch])
        _epochs.clear()
        _epochs[key] = rng.permutation(cells), int(rng.integers(length))
    return _epochs[key]


# ---------------------------------------------------------------------------------------------------------------------
# The run


def train(settings: TrainingSettings, out: str | Path, corpus: Corpus | None = None) -> Path:
    """Train tokenizer and model; returns the model folder `out/model`, in the hub's format.

    `out` also holds the token stream, the last checkpoint and `log.jsonl`. A run folder that has a checkpoint is
    continued. `tokens` may then differ, as long as the learning rate has not begun to fall.

    Args:
        corpus: the text; the installed corpus by default.

    Raises:
        ValueError: if the run folder belongs to other settings or another corpus, or the corpus is too small.
    """
    out = Path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / ".write").touch()
        (out / ".write").unlink()
    except OSError as error:
        raise ValueError(f"cannot write to the run folder {out}: {error.strerror}") from error
    _check_run(settings, out, corpus)
    prepare(settings, out, corpus)
    workers = 1 if settings.device.startswith("cuda") else settings.workers
    if workers == 1:
        _work(0, 1, settings, out)
    else:
        _spawn(workers, settings, out)
    return export(settings, out, out / "model")


def _check_run(settings: TrainingSettings, out: Path, corpus: Corpus | None) -> None:
    file = out / "run.json"
    free = ("tokens", "decay", "checkpoint_steps", "validation_steps", "validation_windows", "device")
    if file.exists():
        stored = json.loads(file.read_text())
        mine = json.loads(json.dumps(asdict(settings)))
        if other := [k for k in mine if k not in free and mine[k] != stored["settings"].get(k)]:
            raise ValueError(f"{out} belongs to a run with other settings ({', '.join(other)}): choose another folder")
        if corpus is not None and corpus.manifest["hash"] != stored["corpus"]:
            raise ValueError(f"{out} belongs to a run on another corpus: choose another folder")


def prepare(settings: TrainingSettings, out: Path, corpus: Corpus | None = None) -> None:
    """Corpus manifest, tokenizer, token stream and windows; `run.json`, written last, says that they are there."""
    from tokenizers import Tokenizer

    if (out / "run.json").exists():
        return
    corpus = corpus or installed_corpus()
    documents = corpus.split("train")
    tokenizer = train_tokenizer(balanced(documents, settings.tokenizer_bytes), settings.shape.vocabulary)
    save_tokenizer(tokenizer, out / "tokenizer")
    tokenizer = Tokenizer.from_file(str(out / "tokenizer" / "tokenizer.json"))
    order = np.random.default_rng(settings.seed).permutation(len(documents))
    write_stream((documents[i] for i in order), tokenizer, out / "stream.u16")
    cut = {"length": settings.length + 1, "seed": settings.seed}
    source = f"installed corpus {corpus.manifest['hash'][:16]}"
    sampling = windows_from_documents(
        documents, tokenizer, count=settings.sampling_windows, source=f"{source}, train", **cut
    )
    heldout = windows_from_documents(
        corpus.split("heldout"),
        tokenizer,
        count=settings.heldout_windows,
        per_document=12,
        source=f"{source}, heldout",
        **cut,
    )
    write_windows(out / "windows.npz", sampling=sampling, heldout=heldout)
    write_json(out / "manifest.json", corpus.manifest)
    write_json(out / "run.json", {"settings": asdict(settings), "corpus": corpus.manifest["hash"]})


def _spawn(workers: int, settings: TrainingSettings, out: Path) -> None:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # waiting threads would take the other process's core
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_work, args=(r, workers, settings, out, address)) for r in range(workers)]
    try:
        for process in processes:
            process.start()
        while any(p.is_alive() for p in processes) and not any(p.exitcode for p in processes):
            time.sleep(0.1)
    finally:
        for process in processes:  # all have ended, unless one failed or we were interrupted
            if process.pid is not None:
                process.terminate()
                process.join()
    if any(p.exitcode for p in processes):
        raise WorkerDied(f"a training process failed; the last checkpoint in {out} is kept")


def _work(rank: int, workers: int, settings: TrainingSettings, out: Path, address: str = "") -> None:
    if workers > 1:
        torch.set_num_threads(1)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
        parent = multiprocessing.parent_process()
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()  # die with the parent
        dist.init_process_group("gloo", init_method=address, rank=rank, world_size=workers)
    try:
        _steps(rank, workers, settings, out)
    finally:
        if workers > 1:
            dist.destroy_process_group()


def _steps(rank: int, workers: int, settings: TrainingSettings, out: Path) -> None:
    shape, device = settings.shape, torch.device(settings.device)
    weights = {k: w.to(device).requires_grad_() for k, w in initial_weights(shape, settings.seed).items()}
    optimiser = Optimiser(weights, settings)
    stream = np.memmap(out / "stream.u16", dtype=np.uint16, mode="r")
    heldout = read_windows(out / "windows.npz", "heldout")
    heldout = heldout.take(_per_domain(heldout.domain, settings.validation_windows))
    first, seconds = _resume(weights, optimiser, settings, out)
    log = Log(out / "log.jsonl", first, settings, active=rank == 0)
    predictions = settings.batch_windows * settings.length
    started = time.perf_counter() - seconds
    with log.progress:
        for step in range(first, settings.steps):
            batch = torch.from_numpy(step_windows(stream, settings, step))[rank::workers].to(device)
            loss = torch.zeros((), device=device)
            for part in batch.split(settings.micro_windows):
                micro = total_loss(weights, part, shape) / predictions
                micro.backward()
                loss += micro.detach()
            loss = _sum_gradients(weights, loss, workers)
            if not math.isfinite(loss):
                raise RuntimeError(f"the loss is {loss} at step {step}: lower muon_lr or adam_lr")
            optimiser.step(settings.rate(step))
            for weight in weights.values():
                weight.grad = None
            done, seconds = step + 1, time.perf_counter() - started
            log.step(done, loss, settings.rate(step), seconds)
            if done % settings.validation_steps == 0 or done == settings.steps:
                log.validation(done, _validate(weights, heldout, shape, rank, workers))
            if rank == 0 and (done % settings.checkpoint_steps == 0 or done == settings.steps):
                state = {"weights": {k: w.detach() for k, w in weights.items()}, "optimiser": optimiser.state_dict()}
                _save(state | {"step": done, "seconds": seconds, "steps": settings.steps}, out / "checkpoint.pt")


def _sum_gradients(weights: dict[str, Tensor], loss: Tensor, workers: int) -> float:
    """Sums gradients and loss over the processes, in place."""
    if workers > 1:
        flat = torch.cat([w.grad.flatten() for w in weights.values()] + [loss[None]])
        dist.all_reduce(flat)
        sizes = [w.numel() for w in weights.values()] + [1]
        *gradients, loss = flat.split(sizes)
        for weight, gradient in zip(weights.values(), gradients, strict=True):
            weight.grad = gradient.view_as(weight)
    return loss.item()


def _resume(weights: dict, optimiser: Optimiser, settings: TrainingSettings, out: Path) -> tuple[int, float]:
    """First step to do, and seconds already spent."""
    if not (out / "checkpoint.pt").exists():
        return 0, 0.0
    state = torch.load(out / "checkpoint.pt", weights_only=True, map_location=settings.device)
    before, now = replace(settings, tokens=state["steps"] * settings.step_tokens), settings
    if before.steps != now.steps and state["step"] < before.steps:
        done = state["step"] - 1
        if done > now.warmup and min(before.rate(done), now.rate(done)) < 1:
            raise ValueError(f"the learning rate is already falling at step {done + 1}: keep the number of tokens")
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(state["weights"][name])
    optimiser.load_state_dict(state["optimiser"])
    return state["step"], state["seconds"]


def _save(state: dict, file: Path) -> None:
    write_whole(file, lambda part: torch.save(state, part))


def _per_domain(domain: ndarray, count: int) -> Int[ndarray, " windows"]:
    return np.concatenate([np.flatnonzero(domain == d)[:count] for d in sorted(set(domain))])


def _validate(
    weights: dict[str, Tensor], heldout: Windows, shape: Architecture, rank: int, workers: int
) -> dict[str, float]:
    """Held-out loss per domain; the processes share the windows."""
    ids = torch.from_numpy(heldout.ids.astype(np.int64)).to(next(iter(weights.values())).device)
    losses = torch.zeros(len(ids))
    losses[rank::workers] = window_losses(weights, ids[rank::workers], shape).cpu()
    if workers > 1:
        dist.all_reduce(losses)
    return domain_means(losses.numpy(), heldout.domain)


class Log:
    """`log.jsonl`: a line per ten steps and per validation; and a progress bar."""

    def __init__(self, file: Path, first: int, settings: TrainingSettings, *, active: bool) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        kept = [line for line in (file.read_text().splitlines() if file.exists() else []) if line]
        if active:  # lines after the checkpoint are written again
            lines = [line for line in kept if json.loads(line)["step"] <= first]
            file.write_text("".join(line + "\n" for line in lines))
        self.file, self.settings, self.active = file, settings, active
        self.losses: list[float] = []
        self.mark = (first, None)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[loss]}"),
            TimeRemainingColumn(),
        )
        self.progress = Progress(*columns, disable=not active)
        self.task = self.progress.add_task("training", total=settings.steps, completed=first, loss="")

    def step(self, step: int, loss: float, rate: float, seconds: float) -> None:
        self.losses.append(loss)
        if self.mark[1] is None:
            self.mark = (step, seconds)
        if step % 10 and step != self.settings.steps:
            return
        steps, took = step - self.mark[0], seconds - self.mark[1]
        speed = round(steps * self.settings.step_tokens / took) if steps else None
        mean = float(np.mean(self.losses))
        self.write(step, loss=mean, rate=rate, seconds=round(seconds, 1), tokens_per_s=speed)
        self.progress.update(self.task, completed=step, loss=f"loss {mean:.3f}, {speed} tokens/s")
        self.losses, self.mark = [], (step, seconds)

    def validation(self, step: int, losses: dict[str, float]) -> None:
        self.write(step, validation={k: round(v, 5) for k, v in losses.items()})

    def write(self, step: int, **values: object) -> None:
        if self.active:
            line = {"step": step, "tokens": step * self.settings.step_tokens, **values}
            with self.file.open("a") as out:
                out.write(json.dumps(line) + "\n")
