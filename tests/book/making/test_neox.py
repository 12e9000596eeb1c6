"""The model function: that of transformers, its loss and gradients."""

import torch
import torch.nn.functional as F
from trainings import MICRO

from spectrobook.making.neox import hidden_states, initial_weights, total_loss, window_losses


def random_weights(shape=MICRO, seed=0, scale=0.3):
    generator = torch.Generator().manual_seed(seed)
    return {k: w + scale * torch.randn(w.shape, generator=generator) for k, w in initial_weights(shape, seed).items()}


def test_the_function_is_that_of_transformers():
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = {k: v for k, v in MICRO.config().items() if k not in ("architectures", "dtype")}
    module = GPTNeoXForCausalLM(GPTNeoXConfig(**config)).eval()
    weights = random_weights()
    module.load_state_dict({k.replace("embed_out", "lm_head"): w for k, w in weights.items()})
    ids = torch.randint(0, 280, (3, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = hidden_states(weights, ids, MICRO) @ weights["embed_out.weight"].T
        torch.testing.assert_close(logits, module(ids).logits, rtol=1e-4, atol=1e-4)


def test_blocked_loss_and_its_gradients():
    weights = {k: w.double().requires_grad_() for k, w in random_weights().items()}
    ids = torch.randint(0, 280, (40, 17), generator=torch.Generator().manual_seed(1))  # 640 predictions: two blocks
    logits = hidden_states(weights, ids[:, :-1], MICRO) @ weights["embed_out.weight"].T
    plain = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
    wanted = torch.autograd.grad(plain, list(weights.values()))
    blocked = total_loss(weights, ids, MICRO)
    found = torch.autograd.grad(blocked, list(weights.values()))
    torch.testing.assert_close(blocked, plain, rtol=1e-12, atol=0)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(window_losses(weights, ids, MICRO).mean(), (plain / 640).detach())
