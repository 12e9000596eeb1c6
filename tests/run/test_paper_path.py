"""The whole path of profile `paper` at reduced size, without a network; and a cluster that loses a worker.

The hub is its own cache on disk, in the hub's layout, with Pythia-14M's true configuration and vocabulary and random
weights. Its tokenizer is Pythia's where it lies beside the project, else the bundled one.
"""

import json
import os
import re
import shutil
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import measuring
import numpy as np
import pytest
import torch
import xarray as xr
from conftest import random_gpt_neox
from measuring import SETTINGS, Inline, files
from safetensors.torch import save_file
from sklearn.metrics import f1_score
from typer.testing import CliRunner

from spectrobook.making.neox import Architecture, initial_weights
from spectrolib import cli
from spectrolib.dictionaries import matching
from spectrolib.model import shapes
from spectrolib.model.loading import load_model
from spectrolib.reading import tokenmap
from spectrolib.run import cost, profiles
from spectrolib.run.measure import measure
from spectrolib.run.plan import text_windows
from spectrolib.run.store import open_clusters, open_result, read_manifest
from spectrolib.text.corpus import BUNDLED, local_documents

NAME = "EleutherAI/pythia-14m"
PYTHIAS_TOKENIZER = Path(__file__).resolve().parents[2] / "shared" / "data" / "gpt-neox-20b-tokenizer.json"
CONFIG = {
    "architectures": ["GPTNeoXForCausalLM"],
    "bos_token_id": 0,
    "eos_token_id": 0,
    "hidden_act": "gelu",
    "hidden_size": 128,
    "initializer_range": 0.02,
    "intermediate_size": 512,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 2048,
    "model_type": "gpt_neox",
    "num_attention_heads": 4,
    "num_hidden_layers": 6,
    "rotary_emb_base": 10000,
    "rotary_pct": 0.25,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "transformers_version": "4.24.0",
    "use_cache": True,
    "use_parallel_residual": True,
    "vocab_size": 50304,
}
"""As the hub has it for Pythia-14M."""


def publish(cache: Path, name: str, folder: Path, revision: str = "main") -> None:
    """Lay a model folder out in the hub's cache: blobs, snapshots of links to them, references."""
    home, commit = cache / f"models--{name.replace('/', '--')}", f"{len(revision):040x}"
    for part in ("blobs", "refs", f"snapshots/{commit}"):
        (home / part).mkdir(parents=True, exist_ok=True)
    (home / "refs" / revision).write_text(commit)
    for file in folder.iterdir():
        blob = home / "blobs" / f"{commit}-{file.name}"
        shutil.copyfile(file, blob)
        (home / "snapshots" / commit / file.name).symlink_to(os.path.relpath(blob, home / "snapshots" / commit))


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    """The hub's cache with Pythia-14M (random weights, in half precision, with the buffers that old files have)."""
    folder, cache = tmp_path_factory.mktemp("pythia"), tmp_path_factory.mktemp("hub")
    shape = Architecture(vocabulary=50304)
    rng = torch.Generator().manual_seed(0)
    weights = {
        name: (tensor if tensor.ndim == 1 else 0.02 * torch.randn(tensor.shape, generator=rng)).half()
        for name, tensor in initial_weights(shape, 0).items()
    }
    for layer in range(6):
        weights[f"gpt_neox.layers.{layer}.attention.masked_bias"] = torch.tensor(-1e9).half()
        weights[f"gpt_neox.layers.{layer}.attention.rotary_emb.inv_freq"] = torch.ones(4).half()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2))
    shutil.copyfile(
        PYTHIAS_TOKENIZER if PYTHIAS_TOKENIZER.exists() else BUNDLED / "tokenizer.json", folder / "tokenizer.json"
    )
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "GPTNeoXTokenizer"}')
    publish(cache, NAME, folder)
    publish(cache, "someone/small-and-trained", bundled_files(tmp_path_factory.mktemp("bundled")))
    publish(cache, "someone/small-and-trained", bundled_files(tmp_path_factory.mktemp("earlier")), "step3000")
    (folder / "config.json").write_text(json.dumps(CONFIG | {"num_attention_heads": 8}))
    publish(cache, NAME, folder, "step1000")
    return cache


def bundled_files(folder: Path) -> Path:
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(BUNDLED / name, folder / name)
    return folder


@pytest.fixture
def hub(cache, monkeypatch) -> Path:
    """The hub, offline."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return cache


@pytest.fixture
def small(monkeypatch) -> profiles.Profile:
    """Profile `paper` with the same kind of chains, and windows, batches and draws for seconds."""
    settings = replace(profiles.PAPER.settings, batch_size=2, chains=2, draws=2, steps_between_draws=1, burn_in=0)
    sizes = {"length": 13, "sampling_windows": 8, "loss_windows": 2, "probe_windows": 15}
    tiny = replace(profiles.PAPER, settings=settings, **sizes)
    monkeypatch.setitem(profiles.PROFILES, "paper", tiny)
    return tiny


@pytest.fixture
def text(tmp_path) -> Path:
    """Two domains, as a Pile subset has them: JSON Lines with the name of the set in its rows."""
    rng = np.random.default_rng(0)
    words = "the of and to in a is that for it as was with be by on not he his but at are this have from".split()
    rows = [
        {
            "text": " ".join(rng.choice(words, 120)) + "."
            if i % 2
            else "\n".join(f"x{j} = {j}" for j in range(i, i + 40)),
            "meta": {"pile_set_name": "Pile-CC" if i % 2 else "Github"},
        }
        for i in range(24)
    ]
    (tmp_path / "pile.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "pile.jsonl"


def spectro(*arguments) -> str:
    """What a command prints; it must succeed."""
    done = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, (arguments, done.output, done.exception)
    return re.sub(r"\s+", " ", done.stdout)


# Loading


def test_the_architecture_is_the_one_named(hub):
    model = load_model(NAME, device="cpu")
    assert model.shape == shapes.PYTHIA["pythia-14m"] == cost.shape_of(NAME)
    assert sum(tensor.numel() for tensor in model.weights.values()) == cost.parameters(model.shape) == 14_067_712
    wrong = r"'EleutherAI/pythia-14m' has another architecture than that name has: heads 8 instead of 4, rotary 4 inst"
    with pytest.raises(ValueError, match=wrong):
        load_model(NAME, revision="step1000", device="cpu")  # of another shape


def test_a_trained_model_in_the_hubs_layout_is_the_same_model(hub):
    found, bundled = load_model("someone/small-and-trained", device="cpu"), load_model("bundled", device="cpu")
    assert found.hash == bundled.hash and found.tokens.to_str() == bundled.tokens.to_str()
    with pytest.raises(ValueError, match="cannot get model 'someone/absent'"):
        load_model("someone/absent")


def test_a_revision_from_the_command_line(hub, small, text, tmp_path):
    run = ["measure", "--profile", "paper", "--text", str(text), "--out", str(tmp_path / "run"), "--dry-run"]

    def asked(model, revision):
        return CliRunner().invoke(cli.app, [*run, "--model", model, "--revision", revision])

    assert asked("someone/small-and-trained", "step3000").exit_code == 0
    missing, other = asked("someone/small-and-trained", "step4000"), asked(NAME, "step1000")
    assert missing.exit_code == other.exit_code == 2
    assert "cannot get model 'someone/small-and-trained'" in missing.stderr
    assert "heads 8 instead of 4" in other.stderr


@pytest.mark.skipif(not PYTHIAS_TOKENIZER.exists(), reason="Pythia's tokenizer does not lie beside the project")
def test_pythias_tokenizer_cuts_text_as_pythia_does(hub):
    assert load_model(NAME, device="cpu").tokens.encode("Hello, I am").ids == [12092, 13, 309, 717]


# The path


def test_from_a_name_to_the_map(hub, small, text, tmp_path, monkeypatch):
    monkeypatch.setattr(tokenmap, "_umap", lambda rows, k, seed: np.column_stack([rows[:, 0], np.arange(len(rows))]))
    run = tmp_path / "run"
    options = ("--text", text, "--out", run, "--components", "l2h1, l4 mlp", "--workers", 1)
    said = spectro("measure", "--profile", "paper", *options)
    assert f"model {NAME} (6 layers x 4 heads, width 128, vocabulary 50,304)" in said
    assert "SGLD with rmsprop" in said and "probe text Github" in said
    result = open_result(run)
    assert result["susceptibility"].shape == (15 * 12, 2) and np.isfinite(result["susceptibility"]).all()
    assert set(result["domain"].values) == {"Github", "Pile-CC"}
    manifest = read_manifest(run)
    assert manifest["model"]["name"] == NAME and manifest["settings"]["preconditioner"] == "rmsprop"
    assert "6 of 6 tasks are done" in spectro("info", run)

    assert "180 x 2 components" in spectro("cluster", run, "--k", 12, "--min-size", 8)
    found = open_clusters(run)
    assert len(found.labels) == 180 and len(found.sizes) >= 1
    cards = spectro("cards", run)
    assert f"clusters {len(found.sizes)}" in cards and (run / "catalogue.html").exists()
    mapped = spectro("map", run, "--k", 12)
    assert f"of {len(found.sizes)} clusters" in mapped and '"tokens":180' in (run / "map.html").read_text()

    model = load_model(NAME, device="cpu")
    probe = text_windows(small, model, local_documents(text), str(text))["probe"]
    assert probe.hash == manifest["windows"]["probe"]["hash"]
    features = write_sparsify(tmp_path / "sae", model, probe)
    matched = spectro("match", run, "--dictionaries", tmp_path / "sae", "--permutations", 20)
    assert f"clusters {len(found.sizes)}, of {(found.labels >= 0).sum()} of 180 tokens" in matched
    tables = {table["at"]: table for table in matching.open_matches(run)["matches"]}
    for at, places in {"predicted": features[:, 1:], "context": features[:, :-1]}.items():
        for cluster in range(len(found.sizes)):
            scores = [f1_score(found.labels == cluster, places[..., f].ravel()) for f in range(places.shape[-1])]
            assert tables[at]["f1"][cluster] == pytest.approx(max(scores))


def write_sparsify(folder: Path, model, windows, site: str = "layers.3", k: int = 3) -> np.ndarray:
    """A dictionary of 12 random directions, in the format of EleutherAI/sae-pythia-70m-32k; where it is active.

    That is by transformers and the formula: (windows, time, features).
    """
    generator = torch.Generator().manual_seed(0)
    encoder, bias = torch.randn(12, 128, generator=generator), torch.zeros(128)
    (folder / site).mkdir(parents=True)
    tensors = {"encoder.weight": encoder, "encoder.bias": torch.zeros(12), "W_dec": encoder.clone(), "b_dec": bias}
    save_file(tensors, folder / site / "sae.safetensors")
    config = {"expansion_factor": 1, "normalize_decoder": True, "num_latents": 12, "k": k, "signed": False, "d_in": 128}
    (folder / site / "cfg.json").write_text(json.dumps(config))
    with torch.no_grad():
        ids = torch.as_tensor(windows.ids, dtype=torch.int64)
        reached = model.model(ids, output_hidden_states=True).hidden_states[4] @ encoder.T  # after layer 3
    largest = reached.topk(k, dim=-1).values[..., -1:]
    return ((reached >= largest) & (reached > 0)).numpy()


# Beyond one process


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model")
    shape = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": measuring.VOCABULARY}
    random_gpt_neox(**shape).save_pretrained(path)
    return path


def test_a_cluster_that_loses_a_worker_gives_the_same_bytes(folder, tmp_path):
    """Two workers of a Dask cluster, one of which is killed in the middle of a task, against one process."""
    distributed = pytest.importorskip("distributed")
    job, out = measuring.plan(folder, replace(SETTINGS, draws=16)), tmp_path / "run"
    left: list[int] = []

    def kill(pid: int) -> None:
        end = time.monotonic() + 120
        while not any((out / "tasks").glob("*.chain?.npz")) and time.monotonic() < end:
            time.sleep(0.005)
        left.append(len(job.tasks) - len(list((out / "tasks").glob("*.chain?.npz"))))
        os.kill(pid, signal.SIGKILL)

    with distributed.LocalCluster(2, threads_per_worker=1, dashboard_address=None) as cluster:
        thread = threading.Thread(target=kill, args=[cluster.workers[0].pid])
        thread.start()
        measure(job, out, executor=cluster.scheduler_address, progress=False)
        thread.join()
    assert 1 <= left[0] < len(job.tasks), "the worker died while there was work"
    measure(job, tmp_path / "alone", executor=Inline(), progress=False)
    assert files(out) == files(tmp_path / "alone")


def test_the_address_of_a_cluster_can_be_given_on_the_command_line(monkeypatch, tmp_path):
    """It reaches `measure` as it is; a word that is no address is one line."""
    given = {}

    def stand_in(plan, out, **options):
        given.update(options)
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["spectrolib.run.measure"], "measure", stand_in)
    command = ["measure", "--out", str(tmp_path / "run"), "--components", "l0h0", "--executor"]
    assert CliRunner().invoke(cli.app, [*command, "tcp://10.0.0.1:8786"]).exit_code == 130
    assert given["executor"] == "tcp://10.0.0.1:8786"
    monkeypatch.undo()
    done = CliRunner().invoke(cli.app, [*command, "clowd"])
    assert done.exit_code == 2 and "unknown executor 'clowd'" in done.stderr and done.stderr.count("\n") == 1


def test_parts_of_the_probe_text_are_rows_of_one_measurement(folder, tmp_path):
    """Chains do not depend on the probe text: what does not fit into memory can be measured in parts."""
    job = measuring.plan(folder, replace(SETTINGS, draws=2), components=("l0h0", "l1 mlp"))
    whole = measure(job, tmp_path / "whole", executor=Inline(), progress=False)
    parts = [
        measure(
            replace(job, probe=job.probe.take(np.arange(2 * i, 2 * i + 2))),
            tmp_path / f"part{i}",
            executor=Inline(),
            progress=False,
        )
        for i in range(3)
    ]
    joined = xr.concat([part[["susceptibility", "covariance"]] for part in parts], dim="token")
    np.testing.assert_array_equal(joined["token_id"], whole["token_id"])
    for name in ("susceptibility", "covariance"):
        np.testing.assert_allclose(joined[name], whole[name], rtol=1e-3, atol=1e-5 * float(abs(whole[name]).max()))
