"""`spectro match`: planted features are found by the command line; windows come back; nulls, files, one-line errors."""

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
from hypothesis import given, settings
from hypothesis import strategies as st
from measuring import SETTINGS, Inline
from scipy.sparse import hstack, random_array
from sklearn.metrics import f1_score
from spectrobook import shipped
from typer.testing import CliRunner

from spectrolib import cli, clustering
from spectrolib.dictionaries import autoencoders, formats, matching
from spectrolib.dictionaries.autoencoders import Autoencoder
from spectrolib.dictionaries.windows import measured_windows, probe_windows, token_rows
from spectrolib.model.engine import Engine
from spectrolib.model.loading import LanguageModel, load_model
from spectrolib.run import store
from spectrolib.run.measure import measure
from spectrolib.run.plan import text_windows
from spectrolib.run.profiles import PAPER
from spectrolib.text.corpus import Windows, bundled_windows, local_documents

WIDTH, FEATURES = 16, 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model of 2 layers and width 16."""
    path = tmp_path_factory.mktemp("model")
    shape = {"hidden_size": WIDTH, "num_attention_heads": 2, "intermediate_size": 32}
    random_gpt_neox(**shape, vocab_size=measuring.VOCABULARY).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def plan(folder):
    model = load_model(folder, device="cpu")
    few = {"components": ("l0h0",), "blocks": 1, "probe": measuring.windows(2, 40)}
    return replace(measuring.plan(folder, replace(SETTINGS, draws=2, chains=1), **few), model=model)


@pytest.fixture(scope="module")
def measured(plan, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("measured") / "run"
    measure(plan, path, executor=Inline(), progress=False)
    return path


@pytest.fixture(scope="module")
def dictionary(folder, plan, tmp_path_factory) -> tuple[Path, np.ndarray]:
    """A dictionary of Marks et al.'s format for the residual after layer 0, and where its features are active.

    They are active on a sixth of all places, by transformers and the formula.
    """
    generator = torch.Generator().manual_seed(0)
    encoder, bias = torch.randn(FEATURES, WIDTH, generator=generator), torch.randn(WIDTH, generator=generator)
    with torch.no_grad():
        ids = torch.as_tensor(plan.probe.ids, dtype=torch.int64)
        x = plan.model.model(ids, output_hidden_states=True).hidden_states[1]
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
def run(measured, dictionary, tmp_path) -> Path:
    """The run with two clusters: where feature 3 is active, read at the token itself; and any 40 of the others."""
    shutil.copytree(measured, tmp_path / "run")
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


# The command


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


def test_the_file_holds_what_the_library_finds(run, dictionary, plan):
    code, out, _ = spectro(run, "--dictionaries", dictionary[0], "--permutations", 20, "--seed", 5, "--json")
    printed = json.loads(out)
    about, matches = matching.open_matches(run).values()
    assert code == 0 and printed == about
    assert (about["tokens"], about["clusters"], about["settings"]["seed"]) == (320, 2, 5)
    assert about["model"] == {"name": str(plan.model.path), "hash": plan.model.hash, "measured": True}
    result, clusters = store.open_result(run), store.open_clusters(run)
    sae = formats.load(dictionary[0])
    x = autoencoders.activations(plan.model, plan.probe, sae.site)
    for table, row in zip(matches, about["dictionaries"], strict=True):
        mine = sae.encode(x.reshape(-1, WIDTH))[token_rows(result, plan.probe, table["at"])]
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


def test_another_model_can_be_named(run, dictionary, folder, tmp_path):
    """The same width, other weights: it works, and the summary says so."""
    shape = {"hidden_size": WIDTH, "num_attention_heads": 2, "intermediate_size": 32}
    random_gpt_neox(seed=1, **shape, vocab_size=measuring.VOCABULARY).save_pretrained(tmp_path / "other")
    arguments = (run, "--dictionaries", dictionary[0], "--permutations", 1)
    code, out, _ = spectro(*arguments, "--model", tmp_path / "other")
    assert code == 0 and "not the model that was measured" in re.sub(r"\s+", " ", out)
    assert max(m["f1"][0] for m in matching.open_matches(run)["matches"]) < 1
    code, out, _ = spectro(*arguments, "--model", folder)
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
        ("damaged", "manifest.json is damaged"),
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


def test_damaged_files_of_matches(tmp_path):
    with pytest.raises(ValueError, match="run `spectro match"):
        matching.open_matches(tmp_path)
    for content in ("[1]", "{", '{"format": 0}', '{"format": 1}'):
        (tmp_path / "matches.json").write_text(content)
        with pytest.raises(ValueError, match=r"matches\.json is damaged"):
            matching.open_matches(tmp_path)
    with pytest.raises(ValueError, match="cannot be written: No such file"):
        matching.save_matches([], tmp_path / "nowhere", {})


# Dictionaries side by side


@given(st.integers(0, 10_000), st.sampled_from(matching.SCORES))
@settings(max_examples=10, deadline=None)
def test_together_is_a_match_with_all_features_side_by_side(seed, score):
    rng = np.random.default_rng(seed)
    labels, token = rng.integers(-1, 4, 120), rng.integers(0, 5, 120)
    labels[:4] = np.arange(4)
    several = [random_array((120, n), density=0.15, rng=rng, format="csr") for n in (3, 1, 7)]
    options = {"keep": token, "score": score, "permutations": 9, "seed": 2}
    found = matching.together([matching.match(labels, values, **options) for values in several], score)
    whole = matching.match(labels, hstack(several, format="csr"), **options)
    for name, values in vars(whole).items():
        if name != "pairs":
            np.testing.assert_array_equal(getattr(found, name), values, err_msg=name)
    for name, values in vars(whole.pairs).items():
        check = (
            np.testing.assert_allclose if name in ("log_p", "q", "average_precision") else np.testing.assert_array_equal
        )
        check(getattr(found.pairs, name), values)


def test_only_matches_of_the_same_clusters_go_together():
    values = np.eye(6)
    one, other = (matching.match(np.array(labels), values, permutations=2) for labels in ([0] * 6, [0] * 5 + [1]))
    few = matching.match(np.zeros(6, dtype=int), values, permutations=1)
    for pair in ([one, other], [one, few]):
        with pytest.raises(ValueError, match="same clusters"):
            matching.together(pair)


# Which dictionaries


def test_the_dictionaries_in_a_folder(tmp_path, monkeypatch):
    def one(site, folder):
        sae = Autoencoder(torch.ones(4, 8), torch.zeros(4), torch.ones(4, 8), torch.zeros(8), 2, site)
        return formats.save(sae, folder)

    names = {"l2 mlp": "many/layers.2.mlp", "l0 residual": "many/layers.0", "l5 residual": "named/here/layers.5"}
    for site, name in names.items():
        one(site, (tmp_path / name).parent)
    (tmp_path / "many" / "layers.x").mkdir()
    (tmp_path / "many" / "layers.x" / "cfg.json").write_text("{}")  # no site
    marks = tmp_path / "marks" / "pythia" / "mlp_out_layer1" / "10_4"
    marks.mkdir(parents=True)
    shutil.copy(one("l1 mlp", tmp_path / "spare") / "sae.safetensors", marks / "ae.pt")
    many, named = tmp_path / "many", tmp_path / "named"
    both = [(f"{many}/layers.0", "l0 residual"), (f"{many}/layers.2.mlp", "l2 mlp")]
    assert formats.listed([many]) == both
    assert formats.listed([many], ["l2 mlp"]) == both[1:]
    assert formats.listed([named, many], ["l5 residual", "l0 residual"]) == [
        (f"{named}/here/layers.5", "l5 residual"),
        both[0],
    ]
    assert formats.listed([named / "here" / "layers.5"]) == [(f"{named}/here/layers.5", "l5 residual")]
    for depth in (tmp_path / "marks", marks.parent.parent, marks.parent, marks):
        assert formats.listed([depth]) == [(str(marks), "l1 mlp")]
    for name, site in both:
        assert formats.load(name, site).site == site
    monkeypatch.chdir(many / "layers.0")
    assert formats.listed(["."]) == [(".", "l0 residual")]
    hub = "EleutherAI/sae-pythia-70m-32k"
    assert formats.listed([hub], ["l3 residual"]) == [(hub, "l3 residual")]


def test_features_are_those_of_all_activations_at_once(tmp_path):
    """Piece by piece, too; and of shuffled weights where the card says so."""
    model, windows = load_model("bundled", device="cpu"), bundled_windows("heldout").take(slice(0, 7)).cut(33)
    for name, engine in (("l3mlp-512-k16", model), ("untrained-l3-1024-k16", autoencoders.untrained(model))):
        sae = formats.load(f"bundled/{name}")
        x = autoencoders.activations(engine, windows, sae.site)
        whole = sae.encode(x.reshape(-1, x.shape[-1]))
        small = Engine(model.shape, model.weights, tokens_per_pass=70)
        for reader in (model, small):
            found = formats.features(sae, reader, windows)
            assert found.shape == whole.shape == (7 * 33, sae.features)
            np.testing.assert_allclose(found.toarray(), whole.toarray(), atol=1e-4)
    other = replace(sae, card={"model_hash": "1" * 64})
    with pytest.raises(ValueError, match="was made for a model with hash 111111111111"):
        formats.features(other, model, windows)


# The windows of a result


def test_a_new_result_holds_its_windows(measured, plan):
    found = measured_windows(store.open_result(measured))
    np.testing.assert_array_equal(found.ids, plan.probe.ids)
    assert found.hash == plan.probe.hash
    np.testing.assert_array_equal(probe_windows(store.open_result(measured)).ids, plan.probe.ids)


def test_windows_of_unequal_lengths_and_parts_of_windows(measured, plan):
    result = store.open_result(measured)
    shorter = result.isel(token=np.flatnonzero((result.sequence.values % 3 > 0) | (result.position.values < 5)))
    found = measured_windows(shorter)
    wanted = np.where((np.arange(40) % 3 > 0)[:, None] | (np.arange(9) < 5), plan.probe.ids, 0)
    np.testing.assert_array_equal(found.ids, wanted)
    rows = token_rows(shorter, found, "predicted")
    np.testing.assert_array_equal(found.ids.ravel()[rows], shorter.token_id.values)
    with pytest.raises(ValueError, match="measure it again"):
        measured_windows(result.isel(token=slice(1, None)))  # without the first token of a window


@pytest.mark.parametrize("name", shipped.SHIPPED)
def test_windows_that_shipped_results_lack_are_rebuilt(name):
    """By their hash, which knows the first tokens too."""
    result = shipped.shipped_result(name).drop_vars("first_token", errors="ignore")
    found = measured_windows(result)
    assert found.hash == json.loads(result.attrs["manifest"])["windows"]["probe"]["hash"]
    np.testing.assert_array_equal(found.ids[:, 1:].ravel(), result.token_id.values)
    with pytest.raises(ValueError, match=r"its windows \(hash [0-9a-f]{12}\) are not among those that come with"):
        measured_windows(result.isel(token=slice(0, 256)))


def test_windows_are_cut_again_from_the_text_that_the_manifest_names(tmp_path):
    model = load_model("bundled", device="cpu")
    text = tmp_path / "text.jsonl"
    rows = [{"text": " ".join(f"word{i} of {i * n}" for i in range(90))} for n in range(4)]
    text.write_text("".join(json.dumps(row) + "\n" for row in rows))
    profile = replace(PAPER, length=9, sampling_windows=2, loss_windows=1, probe_windows=3)
    made = text_windows(profile, model, local_documents(text), str(text))
    said = {
        role: {"shape": list(windows.ids.shape), "hash": windows.hash, "source": str(text)}
        for role, windows in made.items()
    }
    result = _result(made["probe"], {"windows": said})
    np.testing.assert_array_equal(measured_windows(result, model).ids, made["probe"].ids)
    with pytest.raises(ValueError, match="nor can they be cut from"):
        measured_windows(result)  # without its tokenizer
    text.write_text("".join(json.dumps(row) + "\n" for row in rows[::-1]))
    with pytest.raises(ValueError, match="measure it again"):
        measured_windows(result, model)
    with pytest.raises(ValueError, match=r"\(hash unknown\)"):
        measured_windows(_result(made["probe"], {}))
    text.unlink()
    with pytest.raises(ValueError, match="measure it again"):
        measured_windows(result, model)


def _result(windows: Windows, manifest: dict):
    """A result of before, of these windows."""
    import xarray as xr

    count, length = windows.ids.shape
    repeat = lambda values: ("token", np.repeat(values, length - 1))  # noqa: E731
    return xr.Dataset(
        coords={
            "sequence": repeat(np.arange(count)),
            "position": ("token", np.tile(np.arange(1, length), count)),
            "token_id": ("token", windows.ids[:, 1:].ravel()),
            "domain": repeat(windows.domain.astype(object)),
            "document": repeat(windows.document.astype(object)),
        },
        attrs={"manifest": json.dumps(manifest)},
    )


def test_a_model_that_came_from_no_folder_is_read_where_the_run_keeps_it(measured, dictionary, folder, tmp_path):
    model = LanguageModel(load_model(folder, device="cpu").model, None, "in memory")
    run = tmp_path / "run"
    few = {"components": ("l0h0",), "blocks": 1, "probe": measuring.windows(2, 40)}
    job = replace(measuring.plan(folder, replace(SETTINGS, draws=1, chains=1), **few), model=model)
    measure(job, run, executor=Inline(), progress=False)
    save_labels(run, planted(dictionary[1], "context"))
    code, _, error = spectro(run, "--dictionaries", dictionary[0], "--permutations", 1)
    assert (code, error) == (0, "")
    assert max(m["f1"][0] for m in matching.open_matches(run)["matches"]) == 1
