"""Shards of the probe windows: the same bits however the text is cut, and whatever was finished under another cut."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from measuring import Inline, files, odd_plan

from spectrolib.run.measure import measure
from spectrolib.run.shards import cut
from spectrolib.run.store import TaskFile

# How windows are cut


@given(windows=st.integers(1, 60), rows=st.integers(1, 20), shards=st.integers(1, 70))
def test_shards_partition_the_windows_at_the_beginnings_of_passes(windows, rows, shards):
    found = cut(0, windows, windows, rows, shards)
    assert [i for first, end in found for i in range(first, end)] == list(range(windows))
    assert len(found) <= shards
    assert all(first % rows == 0 for first, _ in found)
    assert len(found) == 1 or all(end - first >= rows for first, end in found), "no shard is shorter than a pass"
    passes = max(1, windows // rows)
    assert max(end - first for first, end in found) < rows * (-(-passes // shards) + 1)
    assert len(found) >= min(passes, shards) / 2


# The same bits


@pytest.mark.parametrize("shards", [2, 3, 5])
def test_any_number_of_shards_gives_the_same_bytes(odd_folder, odd_whole, tmp_path, shards):
    measure(odd_plan(odd_folder, shards=shards), tmp_path / "run", executor=Inline(), progress=False)
    assert (
        len(list((tmp_path / "run" / "tasks").iterdir()))
        == len(odd_plan(odd_folder, shards=shards).tasks)
        == 6 * shards
    )
    assert files(tmp_path / "run" / "result.zarr") == files(odd_whole / "result.zarr")
    assert files(tmp_path / "run")["manifest.json"] == files(odd_whole)["manifest.json"]


def test_shards_in_processes_give_the_same_bytes(odd_folder, odd_whole, tmp_path):
    found = measure(odd_plan(odd_folder, shards=2), tmp_path / "run", workers=2, progress=False)
    assert files(tmp_path / "run" / "result.zarr") == files(odd_whole / "result.zarr")
    assert found["susceptibility"].shape == (121, 3)


def test_the_sums_of_a_shard_are_a_stretch_of_the_sums(odd_folder, odd_whole, tmp_path):
    """Every array of every task, not only those that reach the result."""
    measure(odd_plan(odd_folder, shards=3), tmp_path / "run", executor=Inline(), progress=False)
    for task in odd_plan(odd_folder, shards=3).tasks:
        part = TaskFile(tmp_path / "run" / "tasks" / f"{task.name}.npz")
        name = re.sub(r"\.windows.*", "", task.name)
        known = TaskFile(odd_whole / "tasks" / f"{name}.npz")
        tokens = slice(task.windows[0] * 11, task.windows[1] * 11)
        assert part.tokens == tokens.stop - tokens.start
        for component in task.components:
            mine, theirs = part.record(component), known.record(component, tokens.start, tokens.stop)
            np.testing.assert_array_equal(mine.rise, theirs.rise)
            np.testing.assert_array_equal(mine.batch_loss, theirs.batch_loss)
            for own, other in zip(mine.sums, theirs.sums, strict=True):
                for key, value in own.to_arrays().items():
                    np.testing.assert_array_equal(value, other.to_arrays()[key], err_msg=f"{task.name} {key}")


@pytest.mark.parametrize("shards", [1, 2, 5])
def test_a_run_goes_on_with_another_number_of_shards(odd_folder, odd_whole, tmp_path, shards):
    """What is finished is kept, under whatever cut."""
    first, kept = Halting(7), tmp_path / "run" / "tasks"
    with pytest.raises(Stopped):
        measure(odd_plan(odd_folder, shards=3), tmp_path / "run", executor=first, progress=False)
    before = {file: file.stat().st_mtime_ns for file in kept.iterdir()}
    assert len(before) == 7
    measure(odd_plan(odd_folder, shards=shards), tmp_path / "run", executor=Inline(), progress=False)
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert files(tmp_path / "run" / "result.zarr") == files(odd_whole / "result.zarr")


class Stopped(Exception):
    pass


class Halting(Inline):
    """Fails after so many tasks."""

    def __init__(self, count: int):
        super().__init__()
        self.count = count

    def submit(self, function, /, *args, **kwargs):
        return super().submit(function if len(self.tasks) < self.count else stop, *args, **kwargs)


def stop(*_) -> None:
    raise Stopped
