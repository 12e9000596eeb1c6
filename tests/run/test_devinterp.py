"""Results of devinterp 2.0.1 read as ours, and ours as theirs: the same numbers, whoever computes them."""

import json
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr
from measuring import Inline
from typer.testing import CliRunner

from spectrolib import cli
from spectrolib.estimator import standardise
from spectrolib.posterior import Settings
from spectrolib.run import devinterp
from spectrolib.run.measure import measure
from spectrolib.run.plan import Plan
from spectrolib.run.store import open_result
from spectrolib.text.corpus import Windows

theirs = pytest.importorskip("devinterp.slt.susceptibilities")
datasets = pytest.importorskip("datasets")

BATCH, CHAINS, DRAWS, LENGTH = 4, 2, 5, 12
COMPONENTS = ("l0h1", "l1 mlp", "embed")


def tokens(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 53, (count, LENGTH))


@pytest.fixture(scope="module")
def made(tiny_gpt_neox, tmp_path_factory):
    """What devinterp makes: the folder of its stores, its finished tree, and the tokens by observable."""
    from devinterp.slt.weight_restrictions import create_param_masks

    folder = tmp_path_factory.mktemp("devinterp")
    ids = {"pile": tokens(8, 1), "code": tokens(8, 2), "prose": tokens(12, 3)}
    dataset = lambda rows: datasets.Dataset.from_dict({"input_ids": rows.tolist()}).with_format("torch")  # noqa: E731
    tree = theirs.susceptibilities(
        tiny_gpt_neox.requires_grad_(True),
        dataset(tokens(16, 0)),
        {name: (dataset(rows), len(rows) // BATCH) for name, rows in ids.items()},
        {"full": None} | {name: create_param_masks(tiny_gpt_neox, name) for name in COMPONENTS},
        sampling_task="pile",
        lr=2e-3,
        n_beta=10.0,
        localization=300.0,
        num_chains=CHAINS,
        num_draws=DRAWS,
        num_steps_bw_draws=2,
        num_init_loss_batches=2,
        batch_size=BATCH,
        device="cpu",
        output_path=folder / "samples.zarr",
    )
    return folder, tree, ids


@pytest.fixture(scope="module")
def read(made):
    return devinterp.read_samples(made[0], "pile", model="tiny")


# Their draws


def test_their_draws_give_their_susceptibilities(made, read):
    """Every number of `compute_susceptibilities`, by our sums, found by component, observable, window and position."""
    _, tree, _ = made
    table = tree["susceptibilities"].dataset
    assert read["component"].values.tolist() == list(COMPONENTS)
    names = np.array(table.attrs["dataset_id_to_name"])[table["dataset_id"].values]
    first = {"code": 0, "prose": 8}  # observables by name
    places = zip(names, table["batch"].values, table["target_position"].values, strict=True)
    row = [(first[name] + batch) * (LENGTH - 1) + position - 1 for name, batch, position in places]
    for name in COMPONENTS:
        expected = table["sus"].sel(wr=name).values
        found = read["susceptibility"].sel(component=name).values[row]
        assert np.abs(expected).max() > 0
        np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())


def test_tokens_are_labelled_as_ours_are(made, read):
    store = xr.open_datatree(made[0] / "samples_full.zarr", engine="zarr", consolidated=False)
    rows = np.concatenate([store[f"input_ids_{name}"].values for name in ("code", "prose")])
    np.testing.assert_array_equal(read["token_id"], rows[:, 1:].ravel())
    np.testing.assert_array_equal(read["position"], np.tile(np.arange(1, LENGTH), 20))
    np.testing.assert_array_equal(read["sequence"], np.repeat(np.arange(20), LENGTH - 1))
    assert read["domain"].values.tolist() == ["code"] * 8 * 11 + ["prose"] * 12 * 11
    assert read["document"].values[8 * 11] == "prose:0"
    settings = json.loads(read.attrs["manifest"])["settings"]
    assert (settings["nbeta"], settings["gamma"], settings["step_size"]) == (10.0, 300.0, 2e-3)
    assert (settings["chains"], settings["draws"], settings["preconditioner"]) == (CHAINS, DRAWS, "none")


def test_the_other_variables_follow_from_their_losses(made, read):
    """By the formulas of the module, on the float32 losses as they are."""
    store = {
        name: xr.open_datatree(made[0] / f"samples_{name}.zarr", engine="zarr", consolidated=False)
        for name in (*COMPONENTS, "full")
    }
    of = lambda name, what: store[name][f"loss_{what}"].values.astype(np.float64)  # noqa: E731  (chain, draw, window, time)
    probe = lambda name: np.concatenate([of(name, "code"), of(name, "prose")], axis=2).reshape(CHAINS * DRAWS, -1)  # noqa: E731
    level = lambda name: of(name, "pile").mean(axis=(2, 3)).reshape(-1)  # noqa: E731
    for name in COMPONENTS:
        g, d = level(name) - level(name).mean(), probe(name) - level(name)[:, None]
        covariance = (g[:, None] * d).mean(axis=0)
        mine = read.sel(component=name)
        np.testing.assert_allclose(mine["covariance"], covariance, atol=1e-9)
        np.testing.assert_allclose(mine["restricted_moment"], d.mean(axis=0), atol=1e-9)
    full = probe("full") - level("full")[:, None]
    np.testing.assert_allclose(read["full_moment"], full.mean(axis=0), atol=1e-9)
    rise = read["rise"].sel(sampled=list(COMPONENTS)).values
    split = -(read["covariance"] + rise * (read["restricted_moment"] - read["full_moment"]))
    np.testing.assert_allclose(read["susceptibility"], split, atol=1e-9)
    assert read["half_susceptibility"].shape == (2, 2, 1, 20 * 11, 3)
    assert (read["standard_error"] > 0).all() and np.isfinite(read["control_covariance"]).all()


def test_the_start_can_be_named(made, read):
    """A constant added to g moves the two-chain value as the split says, and no one-chain value."""
    start = float(read["rise"].sel(sampled="full"))
    store = xr.open_datatree(made[0] / "samples_full.zarr", engine="zarr", consolidated=False)
    init = float(store["init_loss"].values.mean())
    moved = devinterp.read_samples(made[0], "pile", start_loss=init - 0.5, probes=("code",))
    kept = read.isel(token=read["domain"].values == "code")
    assert float(moved["rise"].sel(sampled="full")) == pytest.approx(start + 0.5, abs=1e-6)
    np.testing.assert_allclose(moved["covariance"], kept["covariance"], atol=1e-9)
    shift = -0.5 * (kept["restricted_moment"] - kept["full_moment"])
    np.testing.assert_allclose(moved["susceptibility"], kept["susceptibility"] + shift, atol=1e-6)


def test_what_is_read_can_be_clustered_described_and_mapped(read, tmp_path, monkeypatch):
    from spectrolib.reading import tokenmap

    monkeypatch.setattr(tokenmap, "_umap", lambda rows, k, seed: rows[:, :2])
    run = str(devinterp.save_run(read, tmp_path / "run"))
    assert open_result(run).identical(open_result(run))
    np.testing.assert_array_equal(open_result(run)["susceptibility"], read["susceptibility"])
    for command in (("cluster", run, "--k", "10", "--min-size", "5"), ("cards", run), ("map", run, "--k", "10")):
        done = CliRunner().invoke(cli.app, list(command))
        assert done.exit_code == 0, (command, done.output, done.exception)
    assert CliRunner().invoke(cli.app, ["info", run]).exit_code == 0


# Their finished table


@pytest.mark.filterwarnings("ignore:The data type:Warning")
def test_their_table_holds_what_their_draws_give(made, read, tmp_path):
    made[1].to_zarr(tmp_path / "table.zarr", consolidated=False)
    for source in (made[1], tmp_path / "table.zarr"):
        table = devinterp.read_susceptibilities(source)
        assert table["component"].values.tolist() == list(COMPONENTS)
        for name in ("token_id", "position", "domain", "document"):
            np.testing.assert_array_equal(table[name], read[name])
        np.testing.assert_allclose(
            standardise(table["susceptibility"].values), standardise(read["susceptibility"].values), atol=1e-3
        )
    devinterp.save_run(table, tmp_path / "run")
    assert CliRunner().invoke(cli.app, ["cluster", str(tmp_path / "run"), "--k", "10"]).exit_code == 0


def test_a_result_becomes_their_table(made, read):
    """Variables, dimensions, types and coordinates are those of a tree that devinterp made; the values come back."""
    store = xr.open_datatree(made[0] / "samples_full.zarr", engine="zarr", consolidated=False)
    first = np.concatenate([store[f"input_ids_{name}"].values[:, 0] for name in ("code", "prose")])
    written = devinterp.susceptibility_tree(read, first)
    for group in ("susceptibilities", "context"):
        mine, original = written[group].dataset, made[1][group].dataset
        assert dict(mine.sizes) == dict(original.sizes) and set(mine.coords) == set(original.coords)
        assert mine.attrs == original.attrs
        for name in original.coords:
            np.testing.assert_array_equal(mine[name], original[name])
            assert mine[name].dims == original[name].dims
    np.testing.assert_array_equal(written["context"]["input_ids"], made[1]["context"]["input_ids"])
    sus = made[1]["susceptibilities"]["sus"].values
    np.testing.assert_allclose(written["susceptibilities"]["sus"], sus, atol=2e-5 * np.abs(sus).max())
    again = devinterp.read_susceptibilities(written)
    np.testing.assert_array_equal(again["susceptibility"], read["susceptibility"])
    with pytest.raises(ValueError, match="219 rows are not whole windows, each with its predictions from 1 on"):
        devinterp.susceptibility_tree(read.isel(token=slice(1, None)))
    with pytest.raises(ValueError, match="20 windows need as many first tokens"):
        devinterp.susceptibility_tree(read, first[:3])


@pytest.mark.filterwarnings("ignore:The data type:Warning")
def test_their_tree_comes_back_as_it_was(made, tmp_path):
    """Read and written again, in memory and through a store of theirs: every value, type, coordinate, attribute."""
    made[1].to_zarr(tmp_path / "table.zarr", consolidated=False)
    for source in (made[1], tmp_path / "table.zarr"):
        again = devinterp.susceptibility_tree(devinterp.read_susceptibilities(source))
        for group in ("susceptibilities", "context"):
            mine, original = again[group].to_dataset(), made[1][group].to_dataset()
            xr.testing.assert_identical(mine, original)
            assert {n: v.dtype for n, v in mine.variables.items()} == {
                n: v.dtype for n, v in original.variables.items()
            }


def of_any_lengths():
    """A result of four windows of 3, 1, 4 and 2 predictions, in two domains that take turns."""
    lengths = np.array([3, 1, 4, 2])
    return xr.Dataset(
        {"susceptibility": (("token", "component"), np.random.default_rng(0).normal(size=(10, 2)))},
        coords={
            "component": ["l0h0", "embed"],
            "sequence": ("token", np.repeat(np.arange(4), lengths)),
            "position": ("token", [1, 2, 3, 1, 1, 2, 3, 4, 1, 2]),
            "token_id": ("token", np.arange(10, 20)),
            "first_token": ("token", np.repeat(np.arange(4), lengths)),
            "text": ("token", np.array([f"t{i}" for i in range(10)], dtype=object)),
            "domain": ("token", np.repeat(np.array(["prose", "code", "prose", "code"], dtype=object), lengths)),
            "document": ("token", np.repeat(np.array(list("abcd"), dtype=object), lengths)),
        },
    )


@pytest.mark.filterwarnings("error")
def test_windows_of_any_length_go_to_a_store_and_come_back(tmp_path):
    """Written out by hand, for the layout of `devinterp.slt.susceptibilities`; nobody warns of anything."""
    result = of_any_lengths()
    path = devinterp.write_susceptibilities(result, tmp_path / "deep" / "table.zarr")
    assert [file.name for file in path.parent.iterdir()] == ["table.zarr"]
    tree = xr.open_datatree(path, engine="zarr", consolidated=False)
    table, context = tree["susceptibilities"].dataset, tree["context"].dataset
    assert table.attrs["dataset_id_to_name"] == context.attrs["dataset_id_to_name"] == ["code", "prose"]
    by_domain = [3, 8, 9, 0, 1, 2, 4, 5, 6, 7]
    np.testing.assert_array_equal(table["sus"], result["susceptibility"].values[by_domain])
    assert table["dataset_id"].values.tolist() == [0] * 3 + [1] * 7
    assert table["batch"].values.tolist() == [0, 1, 1, 0, 0, 0, 1, 1, 1, 1]
    assert table["target_position"].values.tolist() == [1, 1, 2, 1, 2, 3, 1, 2, 3, 4]
    assert context["input_ids"].values.tolist() == [1, 13, 3, 18, 19, 0, 10, 11, 12, 2, 14, 15, 16, 17]
    assert context["position"].values.tolist() == [0, 1, 0, 1, 2, 0, 1, 2, 3, 0, 1, 2, 3, 4]
    again, expected = devinterp.read_susceptibilities(path), result.isel(token=by_domain)
    for name in ("susceptibility", "position", "token_id", "first_token", "domain"):
        np.testing.assert_array_equal(again[name], expected[name])
    with pytest.raises(ValueError, match=r"table\.zarr is there already"):
        devinterp.write_susceptibilities(result, path)


def test_their_builder_makes_the_same_tree_of_windows_of_two_lengths():
    """One observable of windows of 3 predictions and one of 2, by the function of theirs that lays the tree out."""
    rng, parts = np.random.default_rng(0), []
    values = {name: {c: rng.normal(size=(2, n)) for c in ("l0h0", "embed")} for name, n in (("code", 3), ("prose", 2))}
    tokens_of = {"code": np.arange(8).reshape(2, 4), "prose": np.arange(10, 16).reshape(2, 3)}
    for component in ("l0h0", "embed"):
        for name, ids in tokens_of.items():
            places = {"target_position": np.arange(1, ids.shape[1])}
            sus = xr.DataArray(values[name][component], dims=["batch", "target_position"], coords=places)
            held = xr.DataArray(ids, dims=["batch", "position"], coords={"position": np.arange(ids.shape[1])})
            parts.append((component, name, sus.assign_coords(batch=[0, 1]), held.assign_coords(batch=[0, 1])))
    built = theirs._build_output(parts)
    again = devinterp.susceptibility_tree(devinterp.read_susceptibilities(built))
    for group in ("susceptibilities", "context"):
        xr.testing.assert_identical(again[group].to_dataset(), built[group].to_dataset())


def test_a_table_alone_can_be_described_and_asked(made, tmp_path):
    run = str(devinterp.save_run(devinterp.read_susceptibilities(made[1]), tmp_path / "run"))
    for command in (
        ("cluster", run, "--k", "10", "--min-size", "5"),
        ("info", run),
        ("cards", run),
        ("near", run, "3"),
    ):
        done = CliRunner().invoke(cli.app, list(command))
        assert done.exit_code == 0, (command, done.output, done.exception)


def test_damaged_tables_are_named(tmp_path):
    tree = devinterp.susceptibility_tree(of_any_lengths())

    def changed(group, change):
        found = tree.copy(deep=True)
        found[group].dataset = change(found[group].to_dataset())
        return found

    for broken, message in [
        (
            changed("context", lambda d: d.isel(ctx_flat=slice(0, 4))),
            "no token of the context stands at dataset, batch",
        ),
        (changed("context", lambda d: d.drop_vars("position")), "its group 'context' has no position"),
        (changed("susceptibilities", lambda d: d.rename(sus="chi")), "its group 'susceptibilities' has no sus"),
        (changed("susceptibilities", lambda d: d.assign_attrs(dataset_id_to_name=["code"])), "names 1 observables"),
        (changed("context", lambda d: xr.Dataset(d.variables)), "'context' has no dataset_id_to_name"),
        (
            changed("susceptibilities", lambda d: d.isel(sus_flat=slice(0))),
            "group 'susceptibilities' of this tree is empty",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            devinterp.read_susceptibilities(broken)
    with pytest.raises(ValueError, match="none is no Zarr store of susceptibilities"):
        devinterp.read_susceptibilities(tmp_path / "none")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written"):
        devinterp.write_susceptibilities(of_any_lengths(), tmp_path / "file" / "table.zarr")


# Our draws


@pytest.fixture(scope="module")
def ours(tiny_model):
    windows = lambda seed, n: Windows(tokens(n, seed), np.full(n, "code"), np.full(n, "book"))  # noqa: E731
    settings = Settings(
        step_size=2e-3, preconditioner="none", batch_size=4, chains=2, draws=4, steps_between_draws=2, burn_in=1
    )
    return Plan(tiny_model, windows(0, 10), windows(1, 5), windows(2, 6), settings, components=("l0h2", "unembed"))


def test_devinterp_makes_of_our_draws_what_we_measure(ours, tmp_path):
    """Chains are ours, the estimator is theirs; and back: our reader of their stores gives the result of `measure`."""
    result = measure(ours, tmp_path / "run", executor=Inline(), progress=False)
    stores = {name: tmp_path / f"samples_{name}.zarr" for name in (*ours.components, "full")}
    for name, path in stores.items():
        devinterp.write_samples(ours, name, path)
    opened = {n: xr.open_datatree(p, engine="zarr", consolidated=False) for n, p in stores.items()}
    table = theirs.compute_susceptibilities(opened, "loss")["susceptibilities"]["sus"]
    back = devinterp.read_samples(stores, "loss")
    for name in ours.components:
        expected = result["susceptibility"].sel(component=name).values
        scale = np.abs(expected).max()
        np.testing.assert_allclose(table.sel(wr=name), expected, atol=3e-5 * scale)
        np.testing.assert_allclose(back["susceptibility"].sel(component=name), expected, atol=3e-5 * scale)
    np.testing.assert_allclose(back["loss_rise"], result["loss_rise"], atol=1e-6)
    np.testing.assert_allclose(back["batch_loss"], result["batch_loss"], atol=1e-6)


def test_devinterp_takes_our_draws_for_its_influences(ours, tmp_path):
    from devinterp.slt.bif import compute_bif

    path = devinterp.write_samples(ours, "l0h2", tmp_path / "samples.zarr")
    tree = xr.open_datatree(path, engine="zarr", consolidated=False)
    influences = compute_bif(tree, loss_keys=["probe"], compute_covariance=True)["influences"]
    assert influences.shape == (6, 6, 11, 11)
    draws = tree["loss_probe"].values.astype(np.float64).reshape(8, 6, 11)
    expected = np.cov(draws[:, 1, 3], draws[:, 4, 7])[0, 1]
    assert float(influences[1, 4, 3, 7]) == pytest.approx(expected, rel=1e-3, abs=1e-9)


# What must be refused


def test_bad_sources_are_refused(made, read, ours, tmp_path):
    folder = made[0]
    whole = folder / "samples_full.zarr"
    with pytest.raises(ValueError, match="no such folder"):
        devinterp.read_samples(tmp_path / "none", "pile")
    with pytest.raises(ValueError, match=r"must hold one store \*_full.zarr, it holds 0"):
        devinterp.read_samples(tmp_path, "pile")
    with pytest.raises(ValueError, match="'full', is missing: there are \\['l0h1'\\]"):
        devinterp.read_samples({"l0h1": whole}, "pile")
    with pytest.raises(ValueError, match="no observable 'pule': there are"):
        devinterp.read_samples(folder, "pule")
    with pytest.raises(ValueError, match="unknown estimator 'three'"):
        devinterp.read_samples(folder, "pile", estimator_name="three")
    with pytest.raises(ValueError, match="no such store of component 'embed'"):
        devinterp.read_samples({"full": whole, "embed": tmp_path / "none.zarr"}, "pile")
    (tmp_path / "junk.zarr").mkdir()
    with pytest.raises(ValueError, match=r"junk\.zarr is no Zarr store"):
        devinterp.read_samples({"full": whole, "embed": tmp_path / "junk.zarr"}, "pile")
    with pytest.raises(ValueError, match="no tree of devinterp's susceptibilities"):
        devinterp.read_susceptibilities(xr.DataTree(xr.Dataset({"a": 1})))
    tilted = replace(ours, settings=replace(ours.settings, tilt=5.0))
    with pytest.raises(ValueError, match="draws with a tilt of 5 are of two posteriors"):
        devinterp.write_samples(tilted, "l0h2", tmp_path / "x.zarr")
    with pytest.raises(ValueError, match="is there already"):
        devinterp.write_samples(ours, "l0h2", tmp_path / "junk.zarr")


def test_failed_and_unfinished_chains_are_named(made):
    folder = made[0]
    opened = xr.open_datatree(folder / "samples_embed.zarr", engine="zarr", consolidated=False).load()
    broken = opened.dataset.copy(deep=True)
    broken["loss_pile"][1, 2] = np.nan
    stores = {"full": folder / "samples_full.zarr", "embed": xr.DataTree(broken)}
    with pytest.raises(ValueError, match=r"component 'embed', chains \[1\]: losses are not finite"):
        devinterp.read_samples(stores, "pile")
    probes = opened.dataset.copy(deep=True)
    probes["loss_code"][0, 1, 3] = np.inf
    with pytest.raises(ValueError, match="component 'embed', chain 0: probe losses are not finite"):
        devinterp.read_samples(stores | {"embed": xr.DataTree(probes)}, "pile")
    half = opened.dataset.copy().assign_attrs(completed=0)
    with pytest.raises(ValueError, match="samples of component 'embed' are unfinished"):
        devinterp.read_samples(stores | {"embed": xr.DataTree(half)}, "pile")
    other = opened.dataset.copy(deep=True)
    other["input_ids_code"][0, 0] += 1
    with pytest.raises(ValueError, match="tokens of 'code' differ between components 'embed' and 'full'"):
        devinterp.read_samples(stores | {"embed": xr.DataTree(other)}, "pile")
    few = opened.dataset.isel(draw=slice(0, 3))
    with pytest.raises(ValueError, match=r"component 'embed' has \(2, 3\) chains and draws, 'full' has \(2, 5\)"):
        devinterp.read_samples(stores | {"embed": xr.DataTree(few)}, "pile")
