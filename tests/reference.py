"""Losses and gradients by transformers, in float64: what the engine is compared with."""

import copy

import torch
import torch.nn.functional as F

from spectrolib.model.components import gather, split


def put(weights, parts, flat):
    """A copy of ``weights`` (sharing what is untouched) with a component's blocks set to ``flat``."""
    changed = dict(weights)
    for block, piece in zip(parts, split(flat, [block.of(weights).shape for block in parts]), strict=True):
        if changed[block.parameter] is weights[block.parameter]:
            changed[block.parameter] = weights[block.parameter].clone()
        block.of(changed)[...] = piece
    return changed


class Reference:
    """A transformers model with a component at given weights, in float64 unless said. Weights have our names."""

    def __init__(self, model, dtype=torch.float64):
        self.model = copy.deepcopy(model).to(dtype)
        self.dtype = dtype
        named = dict(self.model.named_parameters())
        neox = model.config.model_type == "gpt_neox"
        self.theirs = {name.replace("lm_head", "embed_out") if neox else name: name for name in named}
        self.weights = {ours: named[theirs].detach() for ours, theirs in self.theirs.items()}

    def losses(self, weights, windows):
        ids = torch.as_tensor(windows)
        named = {self.theirs[name]: w for name, w in weights.items()}
        logits = torch.func.functional_call(self.model, named, (ids[:, :-1],)).logits
        return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(len(ids), -1)

    def at(self, blocks, flat, windows):
        return self.losses(put(self.weights, blocks, flat.to(self.dtype)), windows).detach()

    def gradient(self, blocks, flat, windows):
        """Mean loss, and the component's slice of the gradient over every weight."""
        moved = put(self.weights, blocks, flat.to(self.dtype))
        moved = {name: w.clone().requires_grad_() for name, w in moved.items()}
        loss = self.losses(moved, windows).mean()
        loss.backward()
        return loss.item(), gather({name: w.grad for name, w in moved.items()}, blocks)
