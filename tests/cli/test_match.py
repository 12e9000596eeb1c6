"""`spectro match`: planted features are found by the command line; nulls, one-line errors."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import measuring
import numpy as np
import pytest
import torch
from conftest import random_gpt_neox
from measuring import SETTINGS, Inline
from sklearn.metrics import f1_score
from typer.testing import CliRunner

from spectrobook import shipped
from spectrolib import cli, clustering
from spectrolib.dictionaries import autoencoders, formats, matching
from spectrolib.dictionaries.autoencoders import Autoencoder
from spectrolib.dictionaries.windows import probe_windows, token_rows
from spectrolib.model.loading import LanguageModel, load_model
from spectrolib.run import store
from spectrolib.run.measure import measure

WIDTH, FEATURES = 16, 12


@pytest.fixture(scope="module")
def dictionary(narrow_folder, narrow_plan, tmp_path_factory) -> tuple[Path, np.ndarray]:
    """A dictionary of Marks et al.'s format for the residual after layer 0, and where its features are active.

    They are active on a sixth of all places, by transformers and the formula.
    """
    generator = torch.Generator().manual_seed(0)
    encoder, bias = torch.randn(FEATURES, WIDTH, generator=generator), torch.randn(WIDTH, generator=generator)
    with torch.no_grad():
        ids = torch.as_tensor(narrow_plan.probe.ids, dtype=torch.int64)
        x = narrow_plan.model.model(ids, output_hidden_states=True).hidden_states[1]
        reached = (x - bias) @ encoder.T
    offset = -reached.flatten(0, 1).quantile(5 / 6, dim=0)
    path = tmp_path_factory.mktemp("dictionaries")
    target = path / "resid_out_layer0" / "10_12"
    target.mkdir(parents=True)
    tensors = {
        "bias": bias,
        "encoder.weight": encoder,
        "encoder.bias": offset,
        "decoder.weight": encoder.T.contiguous(),
    }
    torch.save(tensors, target / "ae.pt")
    return path, (reached + offset > 0).numpy()


def save_labels(run: Path, labels: np.ndarray) -> None:
    sizes, some = np.bincount(labels[labels >= 0], minlength=0), np.arange(labels.max() + 1)
    why = np.where(labels >= 0, "cluster", "main body")
    found = clustering.Clustering(labels, np.full(len(sizes), 0.1), some, sizes, some, why, 2)
    store.save_clusters(found, run, {"settings": {}})


@pytest.fixture
def run(narrow_run, dictionary, tmp_path) -> Path:
    """The run with two clusters: where feature 3 is active, read at the token itself; and any 40 of the others."""
    shutil.copytree(narrow_run, tmp_path / "run")
    labels = planted(dictionary[1], "predicted")
    save_labels(tmp_path / "run", labels)
    return tmp_path / "run"


def planted(active: np.ndarray, at: str) -> np.ndarray:
    """Labels of all predicted tokens, windows one after the other."""
    mine = active[:, 1:, 3] if at == "predicted" else active[:, :-1, 3]  # windows x predictions
    labels = np.where(mine.ravel(), 0, -1)
    labels[np.random.default_rng(1).choice(np.flatnonzero(labels < 0), 40, replace=False)] = 1
    return labels


def spectro(*arguments) -> tuple[int, str, str]:
    result = CliRunner().invoke(cli.app, ["match", *map(str, arguments)], env={"COLUMNS": "300"})
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize("at", ["predicted", "context"])
def test_a_planted_feature_is_found_where_it_was_planted(run, dictionary, at):
    """F1 is exactly 1 at that position: so the first token of each window, the context of its first row, is right."""
    path, active = dictionary
    labels = planted(active, at)
    save_labels(run, labels)
    code, out, error = spectro(run, "--dictionaries", path, "--permutations", 40)
    assert (code, error) == (0, "")
    about, matches = matching.open_matches(run).values()
    mine, other = sorted(matches, key=lambda m: m["at"] != at)
    assert (mine["feature"][0], mine["f1"][0], mine["precision"][0], mine["recall"][0]) == (3, 1.0, 1.0, 1.0)
    assert mine["sharpest"]["same token"]["feature"][0] == 3 and mine["sharpest"]["same token"]["q"][0] < 1e-6
    assert mine["p"]["same token"][0] == mine["p"]["any token"][0] == 1 / 41
    assert other["f1"][0] < 0.8
    places = active[:, 1:] if at == "predicted" else active[:, :-1]
    scores = [f1_score(labels == 1, places[..., f].ravel()) for f in range(FEATURES)]
    assert mine["feature"][1] == np.argmax(scores) and mine["f1"][1] == pytest.approx(max(scores))
    (row,) = (row for row in about["dictionaries"] if row["at"] == at)
    assert row["beat_chance"]["same token"] == {"best": 1, "any": 1}  # the other cluster is 40 tokens at random
    assert re.search(r"^clusters +2, of \d+ of 320 tokens$", out, re.M) and "matches.json" in out
    numbers = r" +[01]\.\d\d +\d+% \(\d+%\) +\d+% \(\d+%\) +[0-2] \([0-2]\)" + " +1 \\(1\\)" * (at == "predicted")
    assert re.search(rf"10_12 +predicted{numbers} *$", out, re.M) or at == "context"
    assert re.search(r"^ l0 residual +context +[01]\.", out, re.M)


def test_the_file_holds_what_the_library_finds(run, dictionary, narrow_plan):
    code, out, _ = spectro(run, "--dictionaries", dictionary[0], "--permutations", 20, "--seed", 5, "--json")
    printed = json.loads(out)
    about, matches = matching.open_matches(run).values()
    assert code == 0 and printed == about
    assert (about["tokens"], about["clusters"], about["settings"]["seed"]) == (320, 2, 5)
    assert about["model"] == {"name": str(narrow_plan.model.path), "hash": narrow_plan.model.hash, "measured": True}
    result, clusters = store.open_result(run), store.open_clusters(run)
    sae = formats.load(dictionary[0])
    x = autoencoders.activations(narrow_plan.model, narrow_plan.probe, sae.site)
    for table, row in zip(matches, about["dictionaries"], strict=True):
        mine = sae.encode(x.reshape(-1, WIDTH))[token_rows(result, narrow_plan.probe, table["at"])]
        for null, keep in (("any token", None), ("same token", result.token_id.values)):
            found = matching.match(clusters, mine, keep=keep, permutations=20, seed=5)
            assert table["p"][null] == found.p.tolist() and table["q"][null] == found.q.tolist()
            beat = {"best": found.matched().sum(), "any": found.beyond().sum()}
            assert row["beat_chance"][null] == beat
            for rate in row["rates"]:
                assert rate["rate"] == (found.score >= rate["threshold"]).mean()
                assert rate["chance"][null]["rate"] == pytest.approx((found.null >= rate["threshold"]).mean())
        assert table["f1"] == found.score.tolist() and row["score"] == np.median(found.score)
        assert table["active"] == found.active.tolist() and row["features"] == FEATURES
        assert table["size"] == clusters.sizes.tolist()
        assert table["curve"]["rate"][0] == 1.0 and table["curve"]["rate"][50] == (found.score >= 0.5).mean()


def test_without_dictionaries_those_that_ship_are_compared(tmp_path):
    """On 6 windows of the bundled model; and all features together, but for the control of shuffled weights."""
    result = shipped.shipped_result()[["susceptibility"]].isel(token=slice(0, 6 * 128))
    windows = probe_windows(result)
    result = result.assign_coords(first_token=("token", np.repeat(windows.ids[:, 0], 128)))
    result.to_zarr(tmp_path / "result.zarr", zarr_format=3, consolidated=False)
    (tmp_path / "manifest.json").write_text(result.attrs["manifest"])
    words = result["token_id"].values
    common = np.bincount(words).argsort()[::-1][:3]
    labels = np.select([words == word for word in common], [0, 1, 2], -1)
    save_labels(tmp_path, labels)
    code, _, error = spectro(tmp_path, "--permutations", 3)
    assert (code, error) == (0, "")
    rows = matching.open_matches(tmp_path)["about"]["dictionaries"]
    names = [row["dictionary"] for row in rows]
    assert names == [name for name in [*formats.shipped()] for _ in "12"] + ["all of them"] * 2
    assert (
        sum(row["features"] for row in rows[:-2] if row["at"] == "context" and not row["control"])
        == rows[-1]["features"]
    )
    assert [row["dictionary"] for row in rows if row["control"]] == ["bundled/untrained-l3-1024-k16"] * 2
    best = max(row["score"] for row in rows[:-2] if row["at"] == "predicted" and not row["control"])
    assert rows[-2]["score"] >= best > 0.3  # words are easy
    assert all(row["beat_chance"]["same token"] == {"best": 0, "any": 0} for row in rows)  # and that is all they are


@pytest.mark.parametrize(("shuffles", "said"), [(18, "too few shuffles"), (19, "is 0, or 2 and more"), (39, "")])
def test_what_so_few_shuffles_can_show_is_said(run, dictionary, shuffles, said):
    """Two clusters at 5 %: the least p-value, 1 / (shuffles + 1), is enough for both from 19 on, for one from 39 on."""
    code, out, _ = spectro(run, "--dictionaries", dictionary[0], "--permutations", shuffles)
    assert code == 0 and (said in out if said else "shuffles for the first" not in out and "and more" not in out)
    beat = [row["beat_chance"]["same token"] for row in matching.open_matches(run)["about"]["dictionaries"]]
    assert beat[0] == {"best": int(shuffles == 39), "any": 1}


def test_another_model_can_be_named(run, dictionary, narrow_folder, tmp_path):
    """The same width, other weights: it works, and the summary says so."""
    shape = {"hidden_size": WIDTH, "num_attention_heads": 2, "intermediate_size": 32}
    random_gpt_neox(seed=1, **shape, vocab_size=measuring.VOCABULARY).save_pretrained(tmp_path / "other")
    arguments = (run, "--dictionaries", dictionary[0], "--permutations", 1)
    code, out, _ = spectro(*arguments, "--model", tmp_path / "other")
    assert code == 0 and "not the model that was measured" in re.sub(r"\s+", " ", out)
    assert max(m["f1"][0] for m in matching.open_matches(run)["matches"]) < 1
    code, out, _ = spectro(*arguments, "--model", narrow_folder)
    assert code == 0 and "not the model" not in out
    assert max(m["f1"][0] for m in matching.open_matches(run)["matches"]) == 1


def bad(run, dictionary, what: str):
    """A run that cannot be matched, or arguments that make no sense."""
    fine = [run, "--dictionaries", dictionary]
    if what == "no clusters":
        (run / "clusters.npz").unlink()
    if what == "none found":
        save_labels(run, np.full(320, -1))
    if what == "other tokens":
        save_labels(run, np.zeros(9, dtype=int))
    if what == "damaged":
        (run / "manifest.json").write_text("{")
    if what == "other model now":
        said = json.loads((run / "manifest.json").read_text())
        said["model"]["hash"] = "0" * 64
        (run / "manifest.json").write_text(json.dumps(said))
    if what == "gone":
        said = json.loads((run / "manifest.json").read_text())
        said["model"]["name"] = str(run / "away")
        (run / "manifest.json").write_text(json.dumps(said))
    if what == "too wide":
        sae = Autoencoder(torch.ones(4, 8), torch.zeros(4), torch.ones(4, 8), torch.zeros(8), 2, "l0 residual")
        formats.save(sae, run.parent / "wide")
    if what == "no folder of dictionaries":
        (run.parent / "empty").mkdir()
    more = {
        "score": [*fine, "--score", "jaccard"],
        "permutations": [*fine, "--permutations", 0],
        "site": [*fine, "--sites", "layer 0"],
        "absent site": [*fine, "--sites", "l1 residual"],
        "too wide": [run, "--dictionaries", run.parent / "wide"],
        "too deep": [run, "--dictionaries", "bundled/l3-1024-k16"],
        "no name": [run, "--dictionaries", "bundled/l9"],
        "no folder of dictionaries": [run, "--dictionaries", run.parent / "empty"],
        "no such folder": [run, "--dictionaries", run.parent / "nowhere"],
        "none ships": [run],
    }
    return more.get(what, fine)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("no clusters", "run `spectro cluster {run}`"),
        ("none found", "{run} has no clusters"),
        ("other tokens", "{run} has no clusters of its 320 tokens"),
        ("damaged", "manifest.json"),
        ("other model now", "is another one now"),
        ("gone", "; name the measured model with --model"),
        ("too wide", "for activations of width 8, those of the model have 16"),
        ("too deep", "'l3 residual' is beyond the model's 2 layers"),
        ("no name", "no autoencoder 'bundled/l9'"),
        ("no folder of dictionaries", "holds no dictionary: expected SITE/cfg.json"),
        ("no such folder", "nowhere'; if this is a name on the hub, name sites too"),
        ("none ships", "no autoencoder ships for model"),
        ("score", "score must be one of"),
        ("permutations", "permutations must be at least 1, got 0"),
        ("site", "unknown site 'layer 0'"),
        ("absent site", "there is no dictionary of 'l1 residual', but of l0 residual"),
    ],
)
def test_errors_are_one_line(run, dictionary, what, message):
    arguments = bad(run, dictionary[0], what)
    code, out, error = spectro(*arguments)
    assert (code, out, error.count("\n")) == (2, "", 1), error
    assert error.startswith("error: ") and message.format(run=run) in error
    assert not (run / "matches.json").exists()


def test_ctrl_c(run, dictionary, monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(matching, "compare", stopped)
    assert spectro(run, "--dictionaries", dictionary[0]) == (130, "", "stopped: nothing was written\n")
    assert not (run / "matches.json").exists()


def test_a_model_that_came_from_no_folder_is_read_where_the_run_keeps_it(
    narrow_run, dictionary, narrow_folder, tmp_path
):
    model = LanguageModel(load_model(narrow_folder, device="cpu").model, None, "in memory")
    run = tmp_path / "run"
    few = {"components": ("l0h0",), "blocks": 1, "probe": measuring.windows(2, 40)}
    job = replace(measuring.plan(narrow_folder, replace(SETTINGS, draws=1, chains=1), **few), model=model)
    measure(job, run, executor=Inline(), progress=False)
    save_labels(run, planted(dictionary[1], "context"))
    code, _, error = spectro(run, "--dictionaries", dictionary[0], "--permutations", 1)
    assert (code, error) == (0, "")
    assert max(m["f1"][0] for m in matching.open_matches(run)["matches"]) == 1
