"""Training: the order of the data, and resumption to the same bits."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from trainings import SETTINGS, text

from spectrobook.making import training
from spectrobook.making.installed import Corpus
from spectrobook.making.training import step_windows, train, train_tokenizer
from spectrolib.text.corpus import Document, encode


def test_an_epoch_visits_every_window_once():
    stream = np.arange(16 * 41 + 5, dtype=np.uint16)
    settings = replace(SETTINGS, batch_windows=10, micro_windows=1)  # 40 windows an epoch: 4 steps
    steps = [step_windows(stream, settings, step) for step in range(8)]
    for epoch in (steps[:4], steps[4:]):
        starts = np.sort(np.concatenate(epoch)[:, 0])
        assert len(starts) == 40 and set(np.diff(starts)) == {16}
        assert all((np.diff(rows) == 1).all() and rows.shape == (10, 17) for rows in epoch)
    assert not np.array_equal(np.concatenate(steps[:4]), np.concatenate(steps[4:]))
    np.testing.assert_array_equal(step_windows(stream, settings, 2), steps[2])


def test_a_corpus_that_is_too_small():
    with pytest.raises(ValueError, match="too few for windows of 16"):
        step_windows(np.zeros(20, np.uint16), SETTINGS, 0)


# Tokenizer


def test_tokenizer_is_deterministic_and_lossless():
    texts = [text(i) for i in range(5)]
    one, two = (train_tokenizer(texts, 300) for _ in range(2))
    assert one.to_str() == two.to_str() and one.get_vocab_size() == 300
    assert one.token_to_id("<|endoftext|>") == 0
    strange = "def f(x):\n\treturn '日本', \"é\"  # \x07"
    assert one.decode(encode(one, strange).tolist()) == strange


# The run


def test_training_lowers_the_loss_and_logs(finished):
    out, folder = finished
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    validation = [line["validation"] for line in lines if "validation" in line]
    assert [line["step"] for line in lines if "validation" in line] == [4, 8, 12]
    assert set(validation[0]) == {"words", "terms", "mean"}
    summary = json.loads((folder / "training.json").read_text())
    assert summary["finished"] and summary["steps"] == 12 and summary["tokens"] == SETTINGS.tokens
    assert summary["loss"]["heldout"]["mean"] < np.log(280) - 0.3
    assert summary["loss"]["heldout"]["mean"] == pytest.approx(validation[-1]["mean"], abs=0.3)


def interrupt(monkeypatch, at):
    """Stops the training as Ctrl-C would, before the checkpoint of the step is written."""
    step = training.Log.step

    def stop(self, number, *rest):
        if number == at:
            raise KeyboardInterrupt
        step(self, number, *rest)

    monkeypatch.setattr(training.Log, "step", stop)


@pytest.mark.parametrize("at", [3, 8, 11])  # before any checkpoint, at one, in the decay
def test_interrupted_and_resumed_is_uninterrupted(finished, corpus, tmp_path, monkeypatch, at):
    (tmp_path / "stream.u16").write_bytes(b"left over from an interrupted preparation")
    with monkeypatch.context() as patch:
        interrupt(patch, at)
        with pytest.raises(KeyboardInterrupt):
            train(SETTINGS, tmp_path, corpus)
    folder = train(SETTINGS, tmp_path, corpus)
    assert (folder / "model.safetensors").read_bytes() == (finished[1] / "model.safetensors").read_bytes()
    whole, resumed = (
        {(x["step"], "loss" in x): x.get("validation") for x in map(json.loads, (o / "log.jsonl").open())}
        for o in (finished[0], tmp_path)
    )
    assert whole == resumed
    saved = [torch.load(o / "checkpoint.pt", weights_only=True)["weights"] for o in (finished[0], tmp_path)]
    assert all(torch.equal(saved[0][k], saved[1][k]) for k in saved[0])


def test_a_finished_run_is_only_exported_again(finished, corpus, monkeypatch):
    monkeypatch.setattr(training, "total_loss", None)
    before = (finished[1] / "model.safetensors").read_bytes()
    assert (train(SETTINGS, finished[0], corpus) / "model.safetensors").read_bytes() == before


def test_tokens_may_change_while_the_rate_is_constant(corpus, tmp_path, monkeypatch):
    longer = replace(SETTINGS, tokens=2 * SETTINGS.tokens)
    with monkeypatch.context() as patch:
        interrupt(patch, 5)  # the checkpoint of step 4 is there; the shorter run decays from step 6 on
        with pytest.raises(KeyboardInterrupt):
            train(longer, tmp_path, corpus)
    with monkeypatch.context() as patch:
        interrupt(patch, 10)
        with pytest.raises(KeyboardInterrupt):
            train(SETTINGS, tmp_path, corpus)
    with pytest.raises(ValueError, match="already falling"):
        train(longer, tmp_path, corpus)


def test_a_run_folder_of_other_settings_or_text(finished, corpus):
    with pytest.raises(ValueError, match=r"other settings \(muon_lr\)"):
        train(replace(SETTINGS, muon_lr=0.5), finished[0], corpus)
    other = Corpus.from_documents([*corpus.documents, Document(text(999), "words", name="new")])
    with pytest.raises(ValueError, match="another corpus"):
        train(SETTINGS, finished[0], other)


def test_a_run_folder_that_cannot_be_written(corpus, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot write to the run folder"):
        train(SETTINGS, tmp_path / "file" / "run", corpus)


def test_a_loss_that_blows_up_stops_the_run(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "total_loss", lambda w, *_: sum(x.sum() for x in w.values()) * float("nan"))
    with pytest.raises(RuntimeError, match="lower muon_lr or adam_lr"):
        train(SETTINGS, tmp_path, corpus)


def test_two_processes_train_like_one(corpus, tmp_path):
    few = replace(SETTINGS, tokens=3 * SETTINGS.step_tokens)
    folders = [train(replace(few, workers=workers), tmp_path / str(workers), corpus) for workers in (1, 2)]
    one, two = (json.loads((f / "training.json").read_text())["loss"]["heldout"] for f in folders)
    assert two == pytest.approx(one, abs=2e-3)
