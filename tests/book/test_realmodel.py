"""The text that two models share, and what ships of it."""

import numpy as np
import pytest

from spectrobook import realmodel, shipped_table
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
    assert plan.loss is plan.sampling and not (plan.probe.ids == plan.sampling.ids).all()


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


def test_components_stand_at_their_layers():
    names = ["embed", "l0h1", "l0 mlp", "l2g0", "unembed"]
    assert realmodel.places(names) == {"embed": -1, "l0h1": 0, "l0 mlp": 0, "l2g0": 2, "unembed": 3}
    assert realmodel.places(["embed", "l0 mlp", "l29 mlp"])["embed"] == -3
    assert [realmodel.kind_of(name) for name in names[:3]] == ["embedding, unembedding", "attention", "MLP"]


def test_figures_show_the_table():
    measured = shipped_table("real")
    both = {"small": measured["bundled"], "large": measured["smollm2"]}
    fig = realmodel.gamma_figure(both, measured["settings"]["gammas"])
    drawn = {float(y) for line in fig.axes[1].lines for y in line.get_ydata()}
    assert {
        v["linear"] for by in measured["smollm2"]["gamma"].values() for g, v in by.items() if g in ("300", "3000")
    } <= drawn
    fig = realmodel.lengths_figure(both)
    assert sum(len(line.get_xdata()) for line in fig.axes[1].lines) == len(measured["smollm2"]["components"])
    fig = realmodel.controls_figure(measured["controls"])
    assert len(fig.axes[0].containers) == len(measured["controls"])


def test_overlap_is_the_best_jaccard_index():
    mine = np.array([0, 0, 0, 1, 1, -1, 3])
    theirs = np.array([5, 5, -1, 5, 7, 7, -1])
    assert realmodel.best_overlap(mine, theirs).tolist() == pytest.approx([2 / 4, 1 / 3, 0, 0])


def test_a_portrait_tells_documents_and_words_apart():
    card = realmodel.cards()[61]
    assert max(realmodel.spellings(card), key=realmodel.spellings(card).get) == "if"
    page = realmodel.portrait(card, shown=3)
    assert page.count("<code") == 3 and "real-catalogue.html#cluster-61" in page
    indented = realmodel.cards()[43]
    assert indented.tokens[0][0] == r"'\n\n   '"
    assert "'\\n\\n\u00a0\u00a0 '" in realmodel.portrait(indented), "a page would show three blanks as one"
