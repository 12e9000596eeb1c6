"""The cost of the published run, and of runs that were timed."""

import pytest

from spectrobook import scale
from spectrolib.model import shapes
from spectrolib.run import cost

H200 = cost.CARDS["h200"]


def work(model: str = "pythia-14m", tokens: int = 20_000, **changes) -> cost.Work:
    return cost.Work(shapes.PYTHIA[model], tokens, **changes)


def test_the_calibration_foretells_sizes_that_it_was_not_fitted_to():
    fitted, unseen = scale.timed("processor")[:2], scale.timed("processor")[2:]
    assert [run.name for run in unseen] == ["pythia-31m", "pythia-70m"]
    for run in fitted:
        assert scale.cpu_seconds(run.work, run.cores, run.rate) == pytest.approx(run.seconds, rel=0.01)
    for run in unseen:
        assert scale.cpu_seconds(run.work, run.cores, run.rate) == pytest.approx(run.seconds, rel=0.1)
    for run in scale.timed("wall clock"):  # processes start, and the cores share their memory
        assert 0.6 < scale.cpu_seconds(run.work, run.cores, run.rate) / run.seconds < 1


def test_the_published_run_lies_between_what_is_possible_and_what_is_lazy():
    """Full forwards of 4.25 million tokens: more than the card could do in float32, a plain share of its bf16 rate."""
    published = scale.PUBLISHED
    job = work(published.model, published.tokens, settings=published.settings, length=1025)
    seconds = published.card_hours * 3600
    share = {p: sum(scale.full_forwards(job).values()) / seconds / H200.rates[p] for p in cost.PRECISIONS}
    assert share["float32"] > 1 > share["tf32"] > share["bf16"] > 0.1
    probes = scale.full_forwards(job)["probe losses"]
    forward = 2 * (cost.parameters(job.shape) - job.shape.vocabulary * job.shape.width)  # a lookup has no products
    assert probes == pytest.approx(411 * 400 * published.tokens * forward, rel=0.05)  # attention is the rest
    assert 0.4 < cost.operations(job) / sum(scale.full_forwards(job).values()) < 0.8
