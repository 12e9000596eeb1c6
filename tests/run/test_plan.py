"""Plans: the order and the names of tasks, what is left of them, what is refused."""

import json
from dataclasses import replace

import measuring
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from measuring import SETTINGS, odd_plan, plan

from spectrolib.model.loading import LanguageModel
from spectrolib.run.plan import Plan, Task
from spectrolib.run.shards import cut
from spectrolib.text.corpus import Windows, bare_tokenizer, tokenizer_hash


def test_the_longest_tasks_come_first(folder):
    tasks = plan(folder).tasks
    assert [task.components[0] for task in tasks[::2]] == ["l0h0", "full", "embed", "l1h0", "unembed"]
    assert len({task.name for task in tasks}) == len(tasks) == 10
    assert sorted(name for task in tasks if task.chain == 0 for name in task.components) == sorted(
        [*plan(folder).components, "full"]
    )
    assert Task(("l0h0", "l0 mlp"), 3).name == "layer0.chain3"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"components": ("l9h9",)}, "unknown component 'l9h9': the model has heads l0h0 to l1h1"),
        ({"components": ("l0h0", "l0h0")}, "named once each"),
        ({"components": ("full",)}, "without 'full'"),
        ({"estimator": "three_chain"}, "unknown estimator 'three_chain'"),
        ({"blocks": 9}, "blocks must lie between 1 and the 8 draws, got 9"),
        ({"probe": Windows(np.array([[1, 64]]), ["a"], ["b"])}, "probe windows hold token id 64, beyond the model's"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(folder, changes, message):
    with pytest.raises(ValueError, match=message):
        plan(folder, **changes)


def test_windows_of_another_tokenizer_are_refused(folder):
    from tokenizers import Tokenizer, models

    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    model = LanguageModel(measuring.language_model(folder).model, tokenizer, "small")
    foreign = replace(measuring.windows(0, 4), provenance={"tokenizer": "another"})
    with pytest.raises(ValueError, match="loss windows were made with another tokenizer than that of model 'small'"):
        replace(plan(folder), model=model, loss=foreign)


def test_ids_beyond_the_embedding_are_not_called_anothers_if_the_tokenizer_is_the_models(folder):
    from tokenizers import Tokenizer, models

    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(99)}, unk_token="w0"))
    model = LanguageModel(measuring.language_model(folder).model, tokenizer, "small")
    own = replace(measuring.windows(0, 4), provenance={"tokenizer": tokenizer_hash(bare_tokenizer(tokenizer))})
    own = replace(own, ids=own.ids * 0 + 98, vocabulary=99)
    with pytest.raises(ValueError, match=r"loss windows hold token id 98, .* more tokens than its embedding has rows"):
        replace(plan(folder), model=model, loss=own)


def test_a_single_draw_is_one_block(folder):
    assert plan(folder, replace(SETTINGS, draws=1), blocks=None).blocks == 1
    assert plan(folder, replace(SETTINGS, draws=2), blocks=None).blocks == 2
    with pytest.raises(ValueError, match="blocks must lie between 1 and the 1 draws, got 2"):
        plan(folder, replace(SETTINGS, draws=1), blocks=2)


def test_numpy_numbers_make_a_plan_too(folder):
    settings = replace(SETTINGS, draws=np.int64(8), seed=np.int32(0))
    assert json.dumps(plan(folder, settings).manifest()) == json.dumps(plan(folder).manifest())


@given(data=st.data(), windows=st.integers(1, 40), rows=st.integers(1, 5), before=st.integers(1, 9))
def test_what_is_left_fills_the_gaps(data, windows, rows, before):
    """Of a run with one number of shards, some are finished; the rest is cut by another number."""
    done = [part for part in cut(0, windows, windows, rows, before) if data.draw(st.booleans())]
    after = data.draw(st.integers(1, 9))
    gaps = Gaps(windows, rows, after).left({"task": done})
    assert sorted(i for first, end in [*done, *gaps] for i in range(first, end)) == list(range(windows))
    longest = max(end - first for first, end in cut(0, windows, windows, rows, after))
    assert all(first % rows == 0 and end - first < longest + rows for first, end in gaps)
    assert Gaps(windows, rows, after).left({"task": [None]}) == []


class Gaps:
    """The part of a plan that decides what is left, without a model."""

    left, stretches, first_order = Plan.left, Plan.stretches, False

    def __init__(self, windows: int, rows: int, shards: int):
        self.probe, self.rows, self.shards = range(windows), rows, shards
        self.whole = [type("Whole", (), {"name": "task"})]

    def _part(self, task, stretch):
        return stretch


def test_tasks_are_named_by_their_windows(odd_folder):
    names = [task.name for task in odd_plan(odd_folder, shards=3, components=("l0h0",)).tasks]
    shards = [".windows0-4", ".windows4-8", ".windows8-11"]
    assert sorted(names) == sorted(f"{g}.chain{k}{s}" for g in ("full", "layer0") for k in (0, 1) for s in shards)
    assert odd_plan(odd_folder, shards=3).manifest() == odd_plan(odd_folder).manifest()
    assert odd_plan(odd_folder, shards=99).stretches() == [(0, 2), (2, 4), (4, 6), (6, 8), (8, 11)]
    with pytest.raises(ValueError, match="shards must be at least 1, got 0"):
        odd_plan(odd_folder, shards=0)
