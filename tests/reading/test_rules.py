"""Rules: planted reasons, counts by hand, brute force."""

import math

import cardmaking
import numpy as np
import pytest

from spectrolib.checks import intervals
from spectrolib.reading import rules
from spectrolib.reading.conditions import describe
from spectrolib.text.runningtext import running_text


def test_lift_against_hand_counts():
    member, holds = np.zeros(20, dtype=bool), np.zeros(20, dtype=bool)
    member[:4], holds[[0, 1, 2, 7, 8]] = True, True
    found = rules.lift(member, holds, np.arange(20))
    assert found.value == pytest.approx((3.5 / 4.5) / (2.5 / 16.5))
    katz = math.sqrt(1 / 3.5 - 1 / 4.5 + 1 / 2.5 - 1 / 16.5)
    assert found.low <= found.value * math.exp(-intervals.NORMAL * katz) * (1 + 1e-12)
    assert found.low * found.high == pytest.approx(found.value**2)
    nobody = rules.lift(member & False, holds, np.arange(20))
    assert math.isnan(nobody.value) and nobody[1:] == (0.0, math.inf)


def test_lift_covers_in_groups():
    """60 documents of 20 tokens, a quarter members, the condition 3 times as frequent among them: 0.45 and 0.15."""
    rng, kept, groups = np.random.default_rng(2), [], np.repeat(np.arange(60), 20)
    for _ in range(250):
        member = rng.random(1200) < 0.25
        mood = rng.beta(4, 4, size=60)[groups] * 2  # of mean 1, shared by the tokens of a document
        holds = rng.random(1200) < np.where(member, 0.45, 0.15) * mood
        found = rules.lift(member, holds, groups)
        kept.append(found.low <= 3 <= found.high)
    assert np.mean(kept) > 0.9


def test_lift_covers_where_whole_documents_are_members():
    rng, kept, katz, groups = np.random.default_rng(3), [], [], np.repeat(np.arange(60), 20)
    for _ in range(250):
        member = rng.permutation(np.arange(60) < 20)[groups]
        mood = rng.beta(1.5, 1.5, size=60)[groups] * 2
        holds = rng.random(1200) < np.where(member, 0.45, 0.15) * mood
        for found, by in ((kept, groups), (katz, np.arange(1200))):
            drawn = rules.lift(member, holds, by)
            found.append(drawn.low <= 3 <= drawn.high)
    assert np.mean(kept) > 0.9 > 0.8 > np.mean(katz)


# Halves --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def features():
    return describe(running_text(cardmaking.random_result()))


def test_halves_share_no_document_and_are_alike_in_domains(features):
    text = features.text
    dealt = list(rules.deals(text, seed=3))
    assert [unit for unit, _ in dealt] == ["document"] * 8 + ["window"] * 8
    for unit, fit in dealt:
        names = text.document if unit == "document" else text.sequence
        assert not set(names[fit]) & set(names[~fit])
        for domain in set(text.domain):
            mine, theirs = (len(set(names[side & (text.domain == domain)])) for side in (fit, ~fit))
            assert abs(mine - theirs) <= 1
    assert len({fit.tobytes() for _, fit in dealt}) == 16
    again = list(rules.deals(text, seed=3))
    assert all((a[1] == b[1]).all() for a, b in zip(dealt, again, strict=True))


# Rules ---------------------------------------------------------------------------------------------------------------


def planted(text) -> np.ndarray:
    """' the' after ' of', by a loop over windows."""
    found, words = np.zeros(len(text), dtype=bool), [piece.decode() for piece in text.pieces]
    for i in range(1, len(text)):
        same = text.sequence[i] == text.sequence[i - 1]
        found[i] = same and words[i] == " the" and words[i - 1] == " of"
    return found


def test_a_planted_reason_is_found_and_scored_as_by_hand(features):
    text = features.text
    truth = planted(text)
    member = cardmaking.noisy(truth, 0.8, 0.3)
    (rule,) = rules.rules(features, np.where(member, 0, -1), seed=5)
    assert rule.conditions == ("' the'", "after ' of'") and rule.text == "' the' · after ' of'"
    assert rule.split == "document" and rule.confident
    assert rule.halves == 2  # so that the planted reason itself is judged, on either half
    hits, picked, members = (truth & member).sum(), truth.sum(), member.sum()
    assert rule.tested == (picked, members)
    assert rule.precision.value == pytest.approx(hits / picked)
    assert rule.recall.value == pytest.approx(hits / members)
    assert rule.f1 == pytest.approx(2 * hits / (picked + members))
    assert rule.fitted == pytest.approx((hits / picked, hits / members))


def test_no_token_is_judged_by_a_rule_that_saw_its_document(features):
    """Members are ' cat' in one half of the documents and ' dog' in the other: the halves' rules pick none of them."""
    words = np.array([piece.decode() for piece in features.text.pieces])
    _, first = next(rules.deals(features.text, 0))
    member = np.where(first, words == " cat", words == " dog")
    (rule,) = rules.rules(features, np.where(member, 0, -1))
    picked = np.where(first, words == " dog", words == " cat")
    assert rule.tested == (picked.sum(), member.sum()) and rule.halves == 0
    assert (rule.precision.value, rule.recall.value) == (0, 0) and not rule.confident
    assert rule.fitted[1] > 0.5  # where it was fitted it looks good


def test_intervals_know_that_members_come_in_documents(features):
    """Every ' the' of every second document, and none of the others': many tokens, few independent ones."""
    text = features.text
    the = np.array([piece.decode() == " the" for piece in text.pieces])
    member = the & (text.documents // 4 % 2 == 0)  # of each domain alike
    (rule,) = rules.rules(features.only("token"), np.where(member, 0, -1))
    assert rule.conditions == ("' the'",) and rule.halves == 2 and rule.split == "document"
    assert rule.precision == intervals.proportion(member[the], text.documents[the])
    alone = intervals.wilson(rule.precision.value, int(the.sum()))
    assert rule.precision.high - rule.precision.low > 2 * (alone.high - alone.low)


def test_a_list_of_tokens_is_found(features):
    words = np.array([piece.decode() for piece in features.text.pieces])
    member = np.isin(words, [" cat", " dog", "1"])
    (rule,) = rules.rules(features, np.where(member, 0, -1))
    assert rule.conditions[0].startswith("one of ") and len(rule.conditions) == 1
    assert set(rule.conditions[0].removeprefix("one of ").split(", ")) == {"' cat'", "' dog'", "'1'"}
    assert (rule.precision.value, rule.recall.value) == (1, 1)


def test_noise_gets_no_confident_rule(features):
    """Random clusters of the usual sizes: what the best of thousands of rules owes to luck does not hold elsewhere."""
    rng, found = np.random.default_rng(0), []
    sizes = np.array([400, 200, 100, 80, 60, 50, 40, 30, 25, 20, 20, 20])
    for seed in range(5):
        labels = np.full(len(features.text), -1)
        labels[rng.permutation(len(labels))[: sizes.sum()]] = np.repeat(np.arange(len(sizes)), sizes)
        found += rules.rules(features, labels, seed=seed)
    assert len(found) == 60 and all(found)
    assert not any(rule.confident for rule in found)
    fitted = np.nanmedian([rule.fitted[0] for rule in found])
    tested = np.nanmedian([rule.precision.value for rule in found])
    assert tested < fitted / 2  # why halves are needed


def test_the_best_of_all_pairs_by_brute_force(features):
    few = features.only("class", "line", "brackets", "repeat")
    text = few.text
    member = cardmaking.noisy(planted(text), 0.9, 0.5, seed=3)
    _, fit = next(rules.deals(text, 0))
    best = rules._Part(few, fit).best(member)
    columns = [few.column(i) & fit for i in range(len(few.conditions))]
    assert len(columns) <= rules.LEADING

    def score(picked):
        hits = (picked & member).sum()
        return 2 * (hits - np.sqrt(hits)) / ((member & fit).sum() + picked.sum())

    one = max(score(column) for column in columns)
    two = max(score(a & b) for i, a in enumerate(columns) for b in columns[:i])
    assert best.f1 == pytest.approx(max(one, two - rules.GAIN))
    picked = np.logical_and.reduce([columns[part[0]] for part in best.parts])
    assert best.f1 == pytest.approx(score(picked) - rules.GAIN * (len(best.parts) - 1))


def test_members_of_few_windows(features):
    text = features.text
    one_window, one_document = text.sequence == 4, text.document == "document 3"
    assert len(set(text.sequence[one_document])) == 2
    labels = np.full(len(text), -1)
    labels[one_window], labels[one_document] = 0, 1
    alone, pair = rules.rules(features, labels)
    assert alone is None
    assert pair.split == "window"


def test_what_members_share_against_brute_force(features):
    member = cardmaking.noisy(planted(features.text), 0.9, 0.2)
    found = rules.shared(features, member)
    assert {"' the'", "after ' of'"} == {s.condition for s in found[:2]}
    columns = {c.text: features.column(i) for i, c in enumerate(features.conditions)}
    masks = []
    for s in found:
        holds = columns[s.condition]
        assert s.members == pytest.approx(holds[member].mean()) and s.rest == pytest.approx(holds[~member].mean())
        assert s.lift == rules.lift(member, holds, features.text.documents) and s.lift.low > 1
        assert not any((holds[member] == other).all() for other in masks)
        masks.append(holds[member])
    assert rules.shared(features, member | True) == []


@pytest.mark.parametrize("labels", [np.zeros(3, dtype=int), np.zeros(4800), np.zeros((4800, 1), dtype=int)])
def test_other_labels_are_refused(features, labels):
    with pytest.raises(ValueError, match="labels must be 4800 integers, one for each token, got"):
        rules.rules(features, labels)
