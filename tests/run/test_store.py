"""What is on disk: run folders, tasks, results."""

import json
import os
import shutil
import warnings

import numpy as np
import pytest
import xarray as xr
from measuring import files, random_record

from spectrolib.estimator import CovarianceSums
from spectrolib.run.store import (
    ComponentRecord,
    RunFolder,
    TaskFile,
    digest_of,
    open_packed,
    open_result,
    pack,
    read_manifest,
    run_manifest,
)

MANIFEST = {"settings": {"gamma": 300.0, "draws": 8}, "components": ["l0h0"]}


HOSTILE = [
    "",
    " ",
    "\n",
    "\x00",
    "a\x00",
    "�",
    "é",
    "日本語",
    "😀",
    "\u2028",
    "</script>",
    "{{x}}",
    "\\",
    "nan",
    "x" * 500,
]


def record(seed: int, tokens: int = 5, blocks: int = 2) -> ComponentRecord:
    rng = np.random.default_rng(seed)
    sums = [CovarianceSums(tokens) for _ in range(blocks)]
    for part in sums:
        for _ in range(4):
            part.update(rng.standard_normal(), rng.standard_normal(tokens))
    return ComponentRecord(tuple(sums), rng.standard_normal(8), np.full(8, np.nan))


def result(seed: int = 0) -> xr.Dataset:
    rng, tokens = np.random.default_rng(seed), len(HOSTILE)
    halves = rng.standard_normal((2, 2, 3, tokens, 2)).astype(np.float32)
    return xr.Dataset(
        {
            "susceptibility": (("token", "component"), rng.standard_normal((tokens, 2))),
            "half_susceptibility": (("estimator", "half", "block", "token", "component"), halves),
        },
        coords={
            "component": ["l0h0", "l0 mlp"],
            "estimator": ["two_chain", "one_chain"],
            "block": [10, 20, 30],
            "token_id": ("token", np.arange(tokens, dtype=np.int32)),
            "text": ("token", np.array(HOSTILE, dtype=object)),
        },
        attrs={"manifest": json.dumps(MANIFEST), "estimator": "two_chain"},
    )


def test_a_task_comes_back_exactly(tmp_path):
    run = RunFolder(tmp_path / "run", MANIFEST)
    stored = {"l0h0": record(0), "l0 mlp": record(1)}
    assert not run.has("layer0.chain0")
    run.save_task("layer0.chain0", stored)
    assert run.has("layer0.chain0")
    loaded = run.load_task("layer0.chain0")
    assert list(loaded) == list(stored)
    for name in stored:
        np.testing.assert_array_equal(loaded[name].rise, stored[name].rise)
        np.testing.assert_array_equal(loaded[name].batch_loss, stored[name].batch_loss)
        assert len(loaded[name].sums) == 2
        for mine, theirs in zip(loaded[name].sums, stored[name].sums, strict=True):
            for key, value in theirs.to_arrays().items():
                np.testing.assert_array_equal(mine.to_arrays()[key], value)


def test_the_same_task_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        RunFolder(tmp_path / name, MANIFEST).save_task("embed.chain0", {"embed": record(0)})
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_a_task_under_way_is_not_there(tmp_path, monkeypatch):
    """What is written first bears another name, so a killed run leaves no half file that counts."""
    run = RunFolder(tmp_path / "run", MANIFEST)

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        run.save_task("embed.chain0", {"embed": record(0)})
    assert not run.has("embed.chain0")
    monkeypatch.undo()
    run.save_task("embed.chain0", {"embed": record(0)})
    assert [file.name for file in (tmp_path / "run" / "tasks").iterdir()] == ["embed.chain0.npz"]


@pytest.mark.parametrize("bytes_left", [0, 30, 0.5, 0.999])
def test_a_truncated_task_is_named(tmp_path, bytes_left):
    run = RunFolder(tmp_path / "run", MANIFEST)
    run.save_task("embed.chain0", {"embed": record(0)})
    file = run.task_file("embed.chain0")
    data = file.read_bytes()
    file.write_bytes(data[: bytes_left if isinstance(bytes_left, int) else int(len(data) * bytes_left)])
    with pytest.raises(ValueError, match=r"embed.chain0.npz is damaged .*: delete it"):
        run.load_task("embed.chain0")


# The folder


def test_a_folder_belongs_to_its_plan(tmp_path):
    RunFolder(tmp_path / "run", MANIFEST)
    RunFolder(tmp_path / "run", MANIFEST)
    other = {"settings": {"gamma": 30.0, "draws": 8}, "components": ["l0h0"], "seed": 1}
    with pytest.raises(
        ValueError, match=r"another plan \(seed: there null, here 1; settings.gamma: there 300.0, here 30"
    ):
        RunFolder(tmp_path / "run", other)


def test_the_same_model_by_another_name_is_the_same_plan(tmp_path):
    named = lambda name, digest="ab": MANIFEST | {"model": {"name": name, "revision": None, "hash": digest}}  # noqa: E731
    RunFolder(tmp_path / "run", named("models/small"))
    RunFolder(tmp_path / "run", named("/home/me/models/small"))
    assert read_manifest(tmp_path / "run")["model"]["name"] == "models/small"
    with pytest.raises(ValueError, match=r"model.hash: there .ab., here .cd."):
        RunFolder(tmp_path / "run", named("models/small", "cd"))
    RunFolder(tmp_path / "other", named("unknown", ""))
    with pytest.raises(ValueError, match=r"model.name"):  # without a hash the name is all there is
        RunFolder(tmp_path / "other", named("somebody's", ""))


def test_a_folder_has_one_writer(tmp_path):
    run = RunFolder(tmp_path / "run", MANIFEST)
    with run.alone():
        with pytest.raises(ValueError, match=r"another process is writing to .*run: wait for it"), run.alone():
            pass
        RunFolder(tmp_path / "other", MANIFEST).alone().__enter__()
    with run.alone():
        assert sorted(file.name for file in run.path.iterdir()) == ["manifest.json", "tasks"]


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"is not a run folder and not empty \(it holds thesis.tex\)"):
        RunFolder(tmp_path, MANIFEST)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_folder_whose_making_was_interrupted_is_taken_up(tmp_path):
    (tmp_path / "tasks").mkdir()
    (tmp_path / "manifest.part").write_text("{")
    RunFolder(tmp_path, MANIFEST)
    assert read_manifest(tmp_path) == MANIFEST


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(ValueError, match="cannot be written"):
            RunFolder(path, MANIFEST)


def test_a_folder_that_has_become_unwritable_is_refused_before_any_work(tmp_path):
    RunFolder(tmp_path / "run", MANIFEST)
    shutil.rmtree(tmp_path / "run" / "tasks")
    (tmp_path / "run" / "tasks").write_text("a file in the place of the folder")
    with pytest.raises(ValueError, match="cannot be written"):
        RunFolder(tmp_path / "run", MANIFEST)


def test_manifests_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"is not a run folder: it has no manifest.json"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text('{"settings": ')
    with pytest.raises(ValueError, match=r"manifest.json is not valid JSON"):
        read_manifest(tmp_path)
    with pytest.raises(ValueError, match=r"is not a run folder"):
        read_manifest(tmp_path / "manifest.json")


MODEL, WINDOWS = {"name": "m", "hash": "h"}, {"probe": {"shape": [2, 9]}}
WHOLE = {"model": MODEL, "settings": {"chains": 2}, "windows": WINDOWS, "versions": {}, "components": ["embed"]}
WHOLE |= {"estimator": "two_chain"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "must hold a JSON object"),
        ({}, "lacks 'model'"),
        (WHOLE | {"model": {"name": "m"}}, "model in .* lacks 'hash'"),
        (WHOLE | {"model": "m"}, "model is .*must be an object"),
        (WHOLE | {"settings": {"chains": "2"}}, 'chains is "2" in settings'),
        (WHOLE | {"components": "embed"}, "components is .*a list of texts"),
        (WHOLE | {"windows": {"probe": {"shape": [2]}}}, "shape is .* in probe in windows .*2 whole numbers"),
        (WHOLE | {"windows": {"probe": 3}}, "probe is 3"),
        (WHOLE | {"estimator": None}, "lacks 'estimator'"),
    ],
)
def test_a_run_is_refused_by_the_name_of_what_its_manifest_lacks(tmp_path, content, message):
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        run_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps(WHOLE))
    assert run_manifest(tmp_path) == WHOLE


# Results


@pytest.fixture
def run(tmp_path) -> RunFolder:
    return RunFolder(tmp_path / "run", MANIFEST)


def test_a_result_comes_back_exactly_whatever_its_tokens_are(run):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run.save_result(result())
        loaded = open_result(run.path)
    xr.testing.assert_identical(loaded, result())
    assert loaded["text"].values.tolist() == HOSTILE
    assert all(type(text) is str for text in loaded["text"].values)
    assert loaded["susceptibility"].dtype == np.float64
    assert loaded["component"].values.tolist() == ["l0h0", "l0 mlp"]
    assert loaded.sel(component="l0 mlp")["susceptibility"].shape == (len(HOSTILE),)


def test_the_same_result_gives_the_same_bytes_and_replaces_an_earlier_one(run):
    run.save_result(result())
    first = files(run.result_path)
    run.save_result(result(seed=1))
    assert files(run.result_path) != first
    run.save_result(result())
    assert files(run.result_path) == first


def test_a_result_is_read_as_xarray_does_by_default(run):
    run.save_result(result())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = xr.open_zarr(run.result_path).load()
    assert np.array_equal(loaded["susceptibility"], result()["susceptibility"])


@pytest.mark.parametrize(
    "lost",
    [
        "susceptibility/c",
        "susceptibility/c/0",
        "susceptibility/zarr.json",
        "text/c/0",
        "text",
        "zarr.json",
        "component/c/0",
    ],
)
def test_a_damaged_result_is_noticed(run, lost):
    """A chunk that is gone reads as zeros, an array without metadata is not seen."""
    run.save_result(result())
    place = run.result_path / lost
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    with pytest.raises(ValueError, match=r"result\.zarr is damaged \(.*\): delete it, and the same measurement"):
        open_result(run.path)
    shutil.rmtree(run.result_path)
    run.save_result(result())
    xr.testing.assert_identical(open_result(run.path), result())


def test_results_of_earlier_versions_open(run):
    result().to_zarr(run.result_path, zarr_format=3, consolidated=False)
    assert np.array_equal(open_result(run.path)["susceptibility"], result()["susceptibility"])


def test_a_changed_number_is_noticed():
    whole = result()
    assert digest_of(whole) == digest_of(whole.copy(deep=True))
    others = [whole.assign(susceptibility=whole["susceptibility"] * 2), whole.rename(susceptibility="other")]
    others += [whole.assign_coords(component=["l0h0", "l0h1"]), whole.drop_vars("text")]
    assert digest_of(whole) not in {digest_of(other) for other in others}


def test_an_interrupted_result_is_written_again(run):
    leftover = run.path / "result.part.zarr"
    leftover.mkdir()
    (leftover / "zarr.json").write_text("{")
    with pytest.raises(ValueError, match="holds no finished measurement"):
        open_result(run.path)
    run.save_result(result())
    assert not leftover.exists()
    xr.testing.assert_identical(open_result(run.path), result())


def test_a_packed_result_is_one_small_file(run, tmp_path):
    path, again = pack(result(), tmp_path / "small.zarr.zip"), pack(result(), tmp_path / "again.zarr.zip")
    assert {file for file in tmp_path.iterdir() if file.is_file()} == {path, again}
    assert path.read_bytes() == again.read_bytes()
    packed = open_packed(path)
    assert packed["block"].values.tolist() == [30]
    assert packed["susceptibility"].dtype == np.float32
    for name in ("susceptibility", "half_susceptibility"):
        truth = result()[name] if name == "susceptibility" else result()[name][:, :, -1:]
        largest = abs(truth).max([dim for dim in truth.dims if dim != "component"])
        assert (abs(packed[name] - truth) <= 2**-11 * abs(truth) + 3.1e-8 * largest).all(), name
        assert packed[name].dims == truth.dims and packed[name].attrs == {}
    assert packed["text"].values.tolist() == HOSTILE
    assert packed.attrs == result().attrs
    with pytest.raises(ValueError, match=r"no packed measurement at .*absent.zip"):
        open_packed(tmp_path / "absent.zip")


def test_files_are_read_in_stretches(tmp_path):
    run, known = RunFolder(tmp_path / "run", {}), random_record(np.random.default_rng(1), 10)
    run.save_task("full.chain0", {"full": known})
    file = TaskFile(run.task_file("full.chain0"))
    for first, end in ((0, 10), (3, 7), (9, 10), (4, 4)):
        for mine, theirs in zip(file.record("full", first, end).sums, known.sums, strict=True):
            for name in CovarianceSums.VECTORS:
                np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name)[..., first:end])
    data = bytearray(run.task_file("full.chain0").read_bytes())
    data[len(data) // 2] ^= 1
    run.task_file("full.chain0").write_bytes(data)
    with pytest.raises(ValueError, match=r"full.chain0.npz is damaged \(.*\): delete it"):
        TaskFile(run.task_file("full.chain0"))
