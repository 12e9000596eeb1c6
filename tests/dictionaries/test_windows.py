"""The windows of a result, found again: in itself, in a pool, in the text of its manifest."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from spectrobook import shipped
from spectrolib.dictionaries import autoencoders
from spectrolib.dictionaries.windows import measured_windows, probe_windows, token_rows
from spectrolib.model.loading import load_model
from spectrolib.run import store
from spectrolib.run.plan import text_windows
from spectrolib.run.profiles import PAPER
from spectrolib.text.corpus import Windows, bundled_windows, local_documents


def test_a_new_result_holds_its_windows(narrow_run, narrow_plan):
    found = measured_windows(store.open_result(narrow_run))
    np.testing.assert_array_equal(found.ids, narrow_plan.probe.ids)
    assert found.hash == narrow_plan.probe.hash
    np.testing.assert_array_equal(probe_windows(store.open_result(narrow_run)).ids, narrow_plan.probe.ids)


def test_windows_of_unequal_lengths_and_parts_of_windows(narrow_run, narrow_plan):
    result = store.open_result(narrow_run)
    shorter = result.isel(token=np.flatnonzero((result.sequence.values % 3 > 0) | (result.position.values < 5)))
    found = measured_windows(shorter)
    wanted = np.where((np.arange(40) % 3 > 0)[:, None] | (np.arange(9) < 5), narrow_plan.probe.ids, 0)
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


def test_rows_of_a_result_find_their_activations():
    result = shipped.shipped_result().isel(token=slice(100, 700))  # not from the start of a window
    windows = autoencoders.probe_windows(result)
    flat = windows.ids.ravel()
    rows = {at: autoencoders.token_rows(result, windows, at) for at in ("context", "predicted")}
    np.testing.assert_array_equal(flat[rows["predicted"]], result.token_id.values)
    first = result.position.values == 1
    inner = np.flatnonzero(~first)[1:]
    np.testing.assert_array_equal(flat[rows["context"]][inner], result.token_id.values[inner - 1])
    assert set(rows["context"][first] % windows.length) == {0}
    with pytest.raises(ValueError, match="is in none of the 1024 windows"):
        autoencoders.probe_windows(result, bundled_windows("sampling"))
    with pytest.raises(ValueError, match="'context' or 'predicted'"):
        autoencoders.token_rows(result, windows, "both")


def test_a_passage_of_two_documents_is_that_of_the_results_own():
    pool = bundled_windows("heldout").take([3, 3])
    pool = replace(pool, document=np.array(["first", "second"]))
    result = shipped.shipped_result().isel(token=slice(0, 100))
    one = result.assign_coords(
        token_id=("token", pool.ids[0, result.position.values]),
        document=("token", np.repeat("second", result.sizes["token"])),
        sequence=("token", np.zeros(result.sizes["token"], dtype=int)),
    )
    assert autoencoders.probe_windows(one, pool).document.tolist() == ["second"]
    assert autoencoders.probe_windows(one.drop_vars("document"), pool).document.tolist() == ["first"]


def test_a_result_needs_no_more_than_its_coordinates():
    """Windows are found by tokens, so a part of a result will do."""
    pool = bundled_windows("heldout")
    values = lambda x: SimpleNamespace(values=np.asarray(x))  # noqa: E731
    few = {"sequence": values([4, 4]), "position": values([5, 9]), "token_id": values(pool.ids[7, [5, 9]])}
    assert (pool.ids[:, [5, 9]] == pool.ids[7, [5, 9]]).all(axis=1).argmax() == 7
    np.testing.assert_array_equal(autoencoders.probe_windows(few).ids, pool.ids[7:8, :10])
