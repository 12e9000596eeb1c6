"""The view of the shipped study: what it says is what the arrays hold."""

from dataclasses import replace

import numpy as np
import pytest

from spectrobook import language as planted
from spectrobook import purity
from spectrobook.shippedpurity import ShippedStudy


@pytest.fixture(scope="module")
def study() -> ShippedStudy:
    return ShippedStudy.load()


def test_purities_are_those_of_the_file_and_of_the_rows(study):
    stored = study.arrays["purity"]
    kept = study.purity("two_chain", "other", 2, 16)
    np.testing.assert_array_equal(kept, stored[2, 1, 2, 1])
    assert np.isnan(study.purity("moment", "same")[~study.shared]).all()
    again = study.of_rows(study.arrays["rows"][0], "other")
    assert np.nanmean(np.abs(again - study.purity("one_chain", "other"))) < 0.01


def test_the_loss_is_the_model_s_and_needs_no_measurement(study):
    assert len(study.loss) == len(study.asked.kept)
    best = planted.bayes_losses(study.language, study.asked.windows).ravel()[study.asked.kept]
    assert np.corrcoef(best, study.loss)[0, 1] > 0.9
    order = np.argsort(study.loss)
    near = study.of_loss("all")
    assert np.isfinite(near).all()
    first = order[:11]  # the neighbours of the smallest loss are the next ones
    assert near[order[0]] == np.mean(study.asked.reason[first[1:6]] == study.asked.reason[order[0]])


def test_what_is_free_of_charge_against_a_loop(study):
    token, reason = study.asked.token, study.asked.reason
    sharing = study.sharing("token")
    for i in range(0, len(token), 60):
        others = np.delete(np.arange(len(token)), i)
        others = others[token[others] == token[i]]
        if len(others) < 2:
            assert np.isnan(sharing[i])
        else:
            assert sharing[i] == pytest.approx(np.mean(reason[others] == reason[i]))


def test_runs_controls_and_single_chains(study):
    assert purity.POSTERIORS[study.control][0] == 0
    assert study.runs(0) == [0, 6] and study.runs(1) == [1, 7] and study.runs(3) == [3]
    each = study.over_chains("one_chain", "all")
    assert len(each) == 8
    gain = study.gain("one_chain", "all", "one_chain permuted")
    assert gain.low < gain.value < gain.high
    assert gain.value == pytest.approx(each.mean() - study.over_chains("one_chain permuted", "all").mean())


def test_without_the_loss_nothing_follows_it(study):
    place = np.argsort(np.argsort(study.loss)) / len(study.loss)
    noise = np.random.default_rng(0).normal(size=(len(place), 4))
    left = study.without_loss(noise + 5 * np.sin(2 * place)[:, None])
    assert np.abs(np.corrcoef(place, left.T)[0, 1:]).max() < 1e-8
    centred = noise - noise.mean(axis=1, keepdims=True)
    assert min(np.corrcoef(a, b)[0, 1] for a, b in zip(left.T, centred.T, strict=True)) > 0.95


def test_a_study_of_another_model_is_refused(monkeypatch):
    manifest, arrays = purity.shipped()
    monkeypatch.setattr(purity, "shipped", lambda: (manifest | {"model": "another"}, arrays))
    with pytest.raises(ValueError, match="another model: run python -m spectrobook planted"):
        ShippedStudy.load()


def test_a_question_is_asked_of_shared_tokens_only_where_it_must(study):
    values = np.ones(len(study.shared))
    assert np.isfinite(study.of_kind(values, "all")).all()
    assert (np.isfinite(study.of_kind(values, "same")) == study.shared).all()
    assert replace(study).shared.sum() == sum(study.language.words[t][0] == "x" for t in study.asked.token)
