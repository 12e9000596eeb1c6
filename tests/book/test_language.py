"""Planted languages: what is drawn is what the settings say; the tiny model that has learnt one."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from spectrobook import language as planted
from spectrobook.language import AGREE, BIGRAM, BRACKET, COPY, COUNT, NOISE, REASONS, SKIP, START, Language
from spectrobook.making.training import END
from spectrolib.model.loading import engine_of, load_model
from spectrolib.text.corpus import Windows

languages = st.builds(
    Language,
    tokens=st.integers(6, 9),
    overlap=st.sampled_from([0.0, 0.4, 1.0]),
    noise=st.sampled_from([0.0, 0.1]),
    frequency=st.sampled_from([(1.0,) * 6, (1.0, 0.0, 2.0, 6.0, 1.0, 1.0)]),
    fresh=st.sampled_from([0.0, 0.2]),
    lag=st.integers(2, 4),
    classes=st.integers(1, 2),
    kinds=st.integers(1, 3),
    depth=st.integers(1, 3),
    seed=st.integers(0, 50),
)


@pytest.fixture(scope="module")
def drawn():
    return planted.draw(Language(), 400, 33, seed=3)


def with_ids(windows: Windows, ids) -> Windows:
    return replace(windows, ids=np.asarray(ids))


# An independent reading of the rules, from the ids of one context


def opened(language: Language, context: list[int]) -> list[int]:
    """Brackets that are open, outermost first; fails where one closes what is not innermost."""
    stack = []
    for token in context:
        if 1 <= token <= language.kinds:
            stack.append(token)
        elif token <= 2 * language.kinds and token:
            assert stack.pop() == token - language.kinds
    return stack


def latest(context: list[int], among) -> int | None:
    return next((token for token in reversed(context) if token in set(np.asarray(among).tolist())), None)


def reasons_could(language: Language, context: list[int], left: int) -> dict[int, dict[int, float]]:
    """p(r|x) q_r(y|x) by the words of the module's docstring: reason -> token -> probability, before normalising."""
    maps = language.maps
    weight = np.array(language.frequency) / sum(language.frequency) * (1 - language.noise)
    stack = opened(language, context)
    if len(stack) == left:
        return {BRACKET: {stack[-1] + language.kinds: 1.0}}
    found: dict[int, dict[int, float]] = {reason: {} for reason in range(len(REASONS))}

    def add(reason: int, tokens, probability: float) -> None:
        for token in np.atleast_1d(tokens).tolist():
            found[reason][token] = found[reason].get(token, 0.0) + probability / len(np.atleast_1d(tokens))

    back = context[-language.lag] if len(context) >= language.lag else 0
    add(BIGRAM, maps.after[context[-1]], weight[BIGRAM])
    add(SKIP, maps.later[back], weight[SKIP])
    numbers, subjects = maps.sets[COUNT], maps.sets[AGREE][: language.tokens // 3]
    verbs = maps.sets[AGREE][language.tokens // 3 :]
    name, number = latest(context, maps.sets[COPY]), latest(context, numbers)
    subject = latest(context, subjects)
    go_on = {
        COPY: name,
        COUNT: None if number is None else numbers[(numbers.tolist().index(number) + 1) % len(numbers)],
        AGREE: None
        if subject is None
        else verbs[np.arange(len(verbs)) % language.classes == subjects.tolist().index(subject) % language.classes],
    }
    for reason, starts in ((COPY, maps.sets[COPY]), (COUNT, numbers), (AGREE, subjects)):
        on = 0.0 if go_on[reason] is None else weight[reason] * (1 - language.fresh)
        if on:
            add(reason, go_on[reason], on)
        add(START, starts, weight[reason] - on)
    may_open = len(stack) < language.depth and len(stack) + 2 <= left
    for reason, may, tokens in (
        (BRACKET, bool(stack), stack[-1] + language.kinds if stack else 0),
        (START, may_open, np.arange(1, language.kinds + 1)),
    ):
        if may:
            add(reason, tokens, weight[BRACKET] / (bool(stack) + may_open))
    add(NOISE, np.arange(2 * language.kinds + 1, language.vocabulary), language.noise)
    return found


@given(languages, st.integers(0, 5), st.integers(2, 9))
@settings(max_examples=20)
def test_probabilities_and_labels_follow_the_rules(language, seed, length):
    windows, labels = planted.draw(language, 4, length, seed)
    q = planted.conditional(language, windows)
    sure, losses = planted.responsibility(language, windows), planted.bayes_losses(language, windows)
    np.testing.assert_allclose(q.sum(axis=2), 1, rtol=1e-12)
    for i, ids in enumerate(windows.ids.tolist()):
        for t in range(1, length):
            could = reasons_could(language, ids[:t], length - t)
            total = sum(p for of_tokens in could.values() for p in of_tokens.values())
            wanted = np.zeros(language.vocabulary)
            for of_tokens in could.values():
                for token, p in of_tokens.items():
                    wanted[token] += p / total
            np.testing.assert_allclose(q[i, t - 1], wanted, atol=1e-12)
            here = np.array([could.get(r, {}).get(ids[t], 0.0) / total for r in range(len(REASONS))])
            np.testing.assert_allclose(sure[i, t - 1], here / here.sum(), atol=1e-12)
            assert losses[i, t - 1] == pytest.approx(-math.log(here.sum()), rel=1e-9)
            assert here[labels[i, t - 1]] > 0, "a label names a reason that can produce the token"


@given(languages, st.integers(0, 5), st.integers(2, 40))
@settings(max_examples=20)
def test_brackets_always_close(language, seed, length):
    windows, labels = planted.draw(language, 8, length, seed)
    for ids, reasons in zip(windows.ids.tolist(), labels, strict=True):
        assert opened(language, ids) == []
        depths = [len(opened(language, ids[:t])) for t in range(1, length + 1)]
        assert max(depths) <= language.depth
        closes = np.isin(ids[1:], np.arange(language.kinds + 1, 2 * language.kinds + 1))
        assert (closes == (reasons == BRACKET)).all()


# What is drawn has the stated frequencies


def test_reasons_come_as_often_as_stated(drawn):
    """Bigram, skip and noise do not depend on the context but where brackets must close or cannot open."""
    language, (_, labels) = Language(), drawn
    early = labels[:, :28].ravel()
    for reason, stated in ((BIGRAM, 0.95 / 6), (SKIP, 0.95 / 6), (NOISE, 0.05)):
        assert stats.binomtest(int((early == reason).sum()), early.size, stated).pvalue > 1e-3
    heavy = Language(frequency=(4.0, 1.0, 1.0, 1.0, 1.0, 1.0), noise=0.2)
    labels = planted.draw(heavy, 200, 33, seed=5)[1][:, :28].ravel()
    assert stats.binomtest(int((labels == BIGRAM).sum()), labels.size, 0.8 * 4 / 9).pvalue > 1e-3
    assert stats.binomtest(int((labels == NOISE).sum()), labels.size, 0.2).pvalue > 1e-3
    assert planted.draw(replace(language, noise=0.0), 50, 33, 0)[1].max() < NOISE


def test_drawn_tokens_and_reasons_match_their_probabilities(drawn):
    """Sums of (what came) - (its probability) are martingales: each within 4 of its standard deviations of zero."""
    windows, labels = drawn
    q = planted.conditional(Language(), windows)
    came = np.eye(q.shape[2])[windows.ids[:, 1:]]
    z = (came - q).sum(axis=(0, 1)) / np.sqrt((q * (1 - q)).sum(axis=(0, 1)) + 1e-12)
    assert np.abs(z).max() < 4
    sure = planted.responsibility(Language(), windows)
    came = np.eye(len(REASONS))[labels]
    z = (came - sure).sum(axis=(0, 1)) / np.sqrt((sure * (1 - sure)).sum(axis=(0, 1)) + 1e-12)
    assert np.abs(z).max() < 4


def test_overlap_hides_the_reason():
    sure = {}
    for overlap in (0.0, 0.5, 1.0):
        language = Language(overlap=overlap)
        windows, labels = planted.draw(language, 100, 33, seed=1)
        of_label = np.take_along_axis(planted.responsibility(language, windows), labels[..., None].astype(int), 2)
        sure[overlap] = float(of_label[labels < START].mean())
        sets = [set(s.tolist()) for s in language.maps.sets.values()]
        common = set.intersection(*sets)
        assert len(common) == language.shared == round(12 * overlap)
        assert all(a & b == common for a in sets for b in sets if a is not b)
        assert language.vocabulary == 1 + 6 + language.shared + 5 * (12 - language.shared)
    assert sure[0.0] > 0.97 > sure[0.5] > sure[1.0]


def test_pure_noise_is_uniform():
    language = Language(noise=1.0)
    windows, labels = planted.draw(language, 20, 12, seed=0)
    assert (labels == NOISE).all()
    np.testing.assert_allclose(planted.bayes_losses(language, windows), math.log(language.vocabulary - 7))
    easy, hard = (
        planted.bayes_losses(lang, planted.draw(lang, 100, 33, 0)[0]).mean()
        for lang in (Language(noise=0.0), Language(noise=0.3))
    )
    assert easy < hard


def test_the_same_seed_draws_the_same(drawn):
    windows, labels = drawn
    again, same = planted.draw(Language(), 400, 33, seed=3)
    assert again.hash == windows.hash and (same == labels).all()
    assert planted.draw(Language(), 400, 33, seed=4)[0].hash != windows.hash
    assert planted.draw(Language(seed=1), 400, 33, seed=3)[0].hash != windows.hash
    assert windows.vocabulary == Language().vocabulary == len(set(Language().words))
    assert windows.provenance["source"] != planted.draw(Language(seed=1), 1, 3, 0)[0].provenance["source"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": 5}, "tokens must be an integer of at least 3"),
        ({"tokens": 7.5}, "tokens must be an integer"),
        ({"overlap": 1.2}, "overlap must lie between 0 and 1"),
        ({"noise": -0.1}, "noise must lie"),
        ({"fresh": math.nan}, "fresh must lie"),
        ({"lag": 1}, "lag must be an integer of at least 2"),
        ({"depth": 0}, "depth must be"),
        ({"kinds": 0}, "kinds must be"),
        ({"seed": -1}, "seed must be"),
        ({"frequency": (1.0,) * 5}, "six weights"),
        ({"frequency": (0.0, 0.0, 0.0, 1.0, 0.0, 0.0)}, "more than brackets"),
        ({"frequency": (1.0, 1.0, 1.0, 1.0, 1.0, -1.0)}, "none negative"),
    ],
)
def test_languages_that_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Language(**changes)


def test_windows_that_are_refused(drawn):
    language, (windows, _) = Language(), drawn
    with pytest.raises(ValueError, match="at least 1 window"):
        planted.draw(language, 0, 5, 0)
    with pytest.raises(ValueError, match="at least 2 tokens"):
        planted.draw(language, 3, 1, 0)
    shut = windows.ids.copy()
    shut[2, 1] = language.kinds + 1
    with pytest.raises(ValueError, match="window 2: token 4 at position 1 cannot follow"):
        planted.conditional(language, with_ids(windows, shut))
    with pytest.raises(ValueError, match="begin with token 0"):
        planted.bayes_losses(language, with_ids(windows, windows.ids[:, 1:]))
    with pytest.raises(ValueError, match="ids below 19"):
        planted.responsibility(Language(overlap=1.0), windows)


# A model that learns one


def test_a_model_learns_and_travels(tmp_path):
    language = Language(tokens=6, overlap=1.0, kinds=1, noise=0.02, frequency=(8.0, 1.0, 1.0, 1.0, 1.0, 1.0))
    recipe = planted.recipe(language, steps=12)
    recipe = replace(recipe, tokens=12 * 8 * 32, batch_windows=8, micro_windows=8, warmup=2)
    weights, losses = planted.train(language, recipe)
    assert losses[-3:].mean() < losses[0] - 0.3
    again, same = planted.train(language, recipe)
    assert (losses == same).all() and all(torch.equal(again[k], w) for k, w in weights.items())

    folder = planted.export(language, recipe, weights, losses, tmp_path / "model")
    model = load_model(folder, device="cpu")
    windows, _ = planted.draw(language, 20, planted.LENGTH, seed=9)
    rounded = {name: w.half().float() for name, w in weights.items()}
    ids = torch.from_numpy(windows.ids.astype(np.int64))
    by_hand = planted.window_losses(rounded, ids, recipe.shape)
    np.testing.assert_allclose(engine_of(model).losses(windows).mean(1), by_hand, rtol=1e-4)
    assert model.tokenizer.decode(windows.ids[0].tolist()).split() == [language.words[i] for i in windows.ids[0]]
    words = " ".join(language.words[i] for i in windows.ids[0])
    assert model.tokens.encode(words, add_special_tokens=False).ids == windows.ids[0].tolist()
    card = (folder / "README.md").read_text()
    summary = json.loads((folder / "planted.json").read_text())
    assert f"{summary['losses']['model']:.3f}" in card and summary["language"]["tokens"] == 6
    assert language.words[0] == END


def test_the_shipped_model_has_learnt_its_language():
    """Near the Bayes loss on new windows, and not below it: the difference is a Kullback-Leibler divergence."""
    model = load_model(planted.FOLDER, device="cpu")
    summary = json.loads((planted.FOLDER / "planted.json").read_text())
    language = Language(**summary["language"] | {"frequency": tuple(summary["language"]["frequency"])})
    assert language == Language()
    windows, labels = planted.draw(language, 300, planted.LENGTH, seed=2**40)
    bayes = planted.bayes_losses(language, windows)
    excess = engine_of(model).losses(windows).numpy() - bayes
    error = excess.mean(axis=1).std() / math.sqrt(len(excess))
    assert 0 < excess.mean() - 2 * error and excess.mean() < 0.1
    assert summary["losses"]["model"] - summary["losses"]["bayes"] == pytest.approx(excess.mean(), abs=5 * error)
    guess = math.log(language.vocabulary)
    for reason in range(START):  # it has learnt each reason, not only the common ones
        assert excess[labels == reason].mean() < 0.25 * (guess - bayes[labels == reason].mean())
    assert sum(f.stat().st_size for f in planted.FOLDER.iterdir() if f.suffix in (".json", ".safetensors", ".md")) < 1e6
