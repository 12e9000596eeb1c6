"""The text that two models share, and what ships of it."""

import pytest

from spectrobook import realmodel
from spectrolib.text.runningtext import running_text


def test_another_model_reads_the_same_text(bundled, bytewise, some_windows):
    read = realmodel.reread(some_windows, bundled, bytewise, 90)
    assert read.ids.shape == (8, 90) and read.domain.tolist() == some_windows.domain.tolist()
    assert read.vocabulary == 256 and read.provenance["tokenizer"] != some_windows.provenance["tokenizer"]
    texts = realmodel.text_of(some_windows, bundled)
    for ids, text in zip(read.ids, texts, strict=True):
        said = bytewise.tokens.decode(ids.tolist()).rstrip("\ufffd")
        assert said == text.encode()[:90].decode(errors="ignore")
    assert (realmodel.token_lengths(read, bytewise) == 1).all()
    with pytest.raises(ValueError, match="8 windows hold fewer than 9000 tokens of model 'bytewise'"):
        realmodel.reread(some_windows, bundled, bytewise, 9000)


def test_half_of_the_text_is_of_all_domains(bundled):
    probe = realmodel.shared_windows(bundled)["probe"]
    half = len(probe) // 2
    assert len(probe) == 80 and set(probe.domain[:half]) == set(probe.domain)


def test_a_small_plan_reads_the_first_stretches(bundled):
    plan = realmodel.small_plan(bundled, 3, seed=4)
    assert plan.first_order and plan.settings.seed == 4 and plan.probe.ids.shape == plan.sampling.ids.shape == (3, 129)
    assert (plan.probe.ids == realmodel.shared_windows(bundled)["probe"].ids[:3, :129]).all()


def test_the_shipped_tokens_are_those_of_the_text(bundled):
    tokens, lengths = realmodel.tokens(), realmodel.arrays()["smollm2/lengths"]
    texts = realmodel.text_of(realmodel.shared_windows(bundled)["probe"], bundled)
    for window, text in enumerate(texts):
        said = "".join(tokens["text"].values[tokens["sequence"].values == window])
        own = text.encode()[int(lengths[window, 0]) : int(lengths[window].sum(dtype=int))]
        assert "\ufffd" in said or said == own.decode()
    assert len(running_text(tokens)) == len(realmodel.clusters().labels)


def test_the_shipped_cards_are_of_the_shipped_clusters():
    cards, found = realmodel.cards(), realmodel.clusters()
    assert [card.size for card in cards] == found.sizes.tolist()
    assert [card.share for card in cards] == pytest.approx(found.share.tolist())
    text = running_text(realmodel.tokens())
    for example in (card.examples[0] for card in cards):
        said = text.context(example.row)[1]
        assert example.token == said or "\ufffd" in said
        assert found.labels[example.row] >= 0
