"""Operations of a token: against torch's counter, and by hand."""

import pytest
import torch
from conftest import random_gpt_neox

from spectrolib.model.operations import evaluation_operations, gradient_operations, step_operations
from spectrolib.model.shapes import KNOWN, Shape


def test_operations_agree_with_a_count_of_the_products():
    from torch.utils.flop_counter import FlopCounterMode

    model = random_gpt_neox(hidden_size=32, num_attention_heads=4, intermediate_size=128, vocab_size=200)
    shape, tokens = Shape.from_config(model.config.to_dict()), 4 * 16
    ids = torch.randint(0, 200, (4, 16))
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        model(ids)
    assert evaluation_operations("embed", shape, 16) * tokens == pytest.approx(forward.get_total_flops(), rel=0.1)
    with FlopCounterMode(display=False) as step:
        model.requires_grad_(True)(ids).logits.sum().backward()
    assert step_operations("full", shape, 16) * tokens == pytest.approx(step.get_total_flops(), rel=0.1)
    hidden, weight = torch.ones(tokens, 32), torch.ones(200, 32, requires_grad=True)
    with FlopCounterMode(display=False) as step:
        (hidden @ weight.T).sum().backward()
    assert step_operations("unembed", shape, 16) * tokens == step.get_total_flops()


def test_a_sketch_costs_two_operations_for_each_weight_that_is_kept_of_a_long_side():
    def sketches(shape: Shape, **options) -> float:
        one, two = (gradient_operations(shape, 128, width, **options) for width in (1, 2))
        return two - one

    pythia, real = KNOWN["pythia-14m"], KNOWN["smollm2-135m"]
    assert sketches(pythia) == 2 * 2 * 6 * 12 * 128**2  # halves; layers of twelve squares of the width
    assert sketches(pythia, halves=1, share=0.25) == sketches(pythia) / 8
    heads, mlp = (2 * 9 + 2 * 3) * 64 * 128, 3 * 128 * 128  # sides of 576 and 1536 are brought to 128
    assert sketches(real) == 2 * 2 * 30 * (heads + mlp)
