"""Floating-point operations of one token, counted from the shape of a model alone: matrix products, attention included.

A test compares the counts with torch's own counter.
"""

from __future__ import annotations

from .components import Component
from .shapes import Shape


def attention_operations(shape: Shape, time: int, groups: int) -> float:
    """Operations of ``groups`` groups of heads for one token: projections, and causal attention over half the window.

    ``time`` is the number of tokens that a window's predictions read.
    """
    projections = 2 * shape.width * shape.head_dim * (2 * shape.shared + 2)
    return groups * (projections + 2 * shape.shared * shape.head_dim * time)


def mlp_operations(shape: Shape) -> float:
    """Operations of an MLP for one token."""
    return 2 * shape.width * shape.mlp * (len(shape.where.up) + 1)


def layer_operations(shape: Shape, time: int) -> float:
    """Operations of one layer for one token."""
    return attention_operations(shape, time, shape.groups) + mlp_operations(shape)


def _own_operations(component: Component, shape: Shape, time: int) -> float:
    """Operations for one token in the component's own layer: of the component, and of an MLP that reads its output."""
    if component.layer is None:
        return 0.0
    if component.kind == "mlp":
        return mlp_operations(shape)
    return attention_operations(shape, time, 1) + (0 if shape.parallel else mlp_operations(shape))


def evaluation_operations(component: str | Component, shape: Shape, time: int) -> float:
    """Operations that the loss of one token needs: the component that moved, the layers after it, the unembedding."""
    component = Component.of(component)
    if component.layer is None:
        after = 0 if component.kind == "unembed" else shape.layers
    else:
        after = shape.layers - 1 - component.layer
    unembed = 2 * shape.width * shape.vocabulary
    return _own_operations(component, shape, time) + after * layer_operations(shape, time) + unembed


SIDE = 512
"""The longest side of a matrix that a sketch of its gradient does not reduce (`gradients`)."""
REDUCED = 128
"""The number of dimensions to which a longer side is reduced."""


def gradient_operations(
    shape: Shape, time: int, width: int, halves: int = 2, targets: int = 32, share: float = 1.0
) -> float:
    """Operations for the sketched gradients of one token with respect to all components, averaged over a window.

    The backward pass through the positions up to the token, and the products of slopes and inputs, each cost as much as
    a forward pass; one forward pass serves ``targets`` tokens. To this the sketches are added.

    Args:
        width: columns of a sketch.
        halves: independent sketches.
        share: the part of the model's weights that belongs to the sketched components.
    """

    def short(side: int) -> int:
        return REDUCED if side > SIDE else side

    body = shape.layers * layer_operations(shape, time)
    heads = (2 * shape.heads + 2 * shape.groups) * shape.head_dim * short(shape.width)
    kept = shape.layers * (heads + (len(shape.where.up) + 1) * short(shape.mlp) * short(shape.width))
    sketches = share * 2 * kept * width * halves
    return (2 + 1 / targets) * body * (time + 1) / 2 + sketches + 4 * shape.width * shape.vocabulary


def step_operations(component: str | Component, shape: Shape, time: int) -> float:
    """Operations of one token in a gradient step: the forward pass, and as many again for each gradient.

    Frozen weights need the gradient of their inputs, moving weights their own: one more product each. ``full`` needs
    both everywhere, and a tied embedding needs both where it is the unembedding.
    """
    component = Component.of(component)
    forward = evaluation_operations(component, shape, time)
    tied = 2 * shape.width * shape.vocabulary if component.kind == "embed" and shape.tied else 0
    return forward * 3 if component.kind == "full" else 2 * forward + tied
