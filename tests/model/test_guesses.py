"""What a model expects, against transformers and against its own losses."""

import numpy as np
import pytest
import torch

from spectrolib.model.guesses import guesses
from spectrolib.text.corpus import bundled_windows


def test_guesses_are_those_of_transformers(bundled):
    ids = bundled_windows("heldout").ids[:3, :40].astype(np.int64)
    with torch.no_grad():
        chances = bundled.model(torch.as_tensor(ids)).logits[:, :-1].softmax(dim=-1)
    found, own = guesses(bundled, ids), chances.gather(2, torch.as_tensor(ids[:, 1:, None]))
    assert found.token.shape == (3, 39)
    np.testing.assert_array_equal(found.token, chances.argmax(dim=-1))
    np.testing.assert_allclose(found.probability, chances.amax(dim=-1), atol=1e-5)
    np.testing.assert_array_equal(found.rank, (chances > own).sum(dim=-1) + 1)
    assert len(np.unique(found.rank)) > 10


def test_where_the_guess_is_right_the_loss_is_its_surprise(bundled_engine):
    ids = bundled_windows("heldout").ids[:4, :33]
    found, loss = guesses(bundled_engine, ids), bundled_engine.losses(ids).numpy()
    right = found.rank == 1
    np.testing.assert_array_equal(right, found.token == ids[:, 1:])
    np.testing.assert_allclose(np.exp(-loss[right]), found.probability[right], rtol=1e-4)
    assert (np.exp(-loss[~right]) < found.probability[~right]).all() and 0.1 < right.mean() < 0.9


def test_a_window_in_any_batch_and_rows_of_a_result(bundled_engine):
    ids = bundled_windows("heldout").ids[:5, :20]
    all_of_them, one = guesses(bundled_engine, ids), guesses(bundled_engine, ids[3:4])
    np.testing.assert_array_equal(all_of_them.rank[3], one.rank[0])
    some = all_of_them.take(np.array([3 * 19 + 4, 7]))
    np.testing.assert_array_equal(some.token, [one.token[0, 4], all_of_them.token[0, 7]])
    with pytest.raises(ValueError, match="token ids must lie in 0 to 4095"):
        guesses(bundled_engine, np.array([[1, 4096]]))
