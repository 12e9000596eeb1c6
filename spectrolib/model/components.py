"""Components of a model: names, and the blocks of weights they mean.

A component is a block of weights: every attention head, every MLP, the embedding and the unembedding
(paper, "Susceptibilities"; block boundaries as in the authors' library ``devinterp``). For head ``h`` of a GPT-NeoX
these are

* the rows of ``query_key_value.{weight,bias}``, viewed as ``(heads, 3, head_dim)``, at ``h``;
* columns ``h * head_dim`` to ``(h + 1) * head_dim`` of ``attention.dense.weight``.

The bias of the output projection and the norms belong to no component; an MLP is its matrices and their biases. The
name ``full`` stands for every weight of the model: the unrestricted chain.

Other families differ in where things lie (`shapes.FAMILIES`) and in two ways that change what a component is:

* Where several query heads share keys and values, *groups* ``l0g0``, ``l0g1``, ... partition the attention weights: the
  query heads that share, with what they share. A single query head ``l0h3`` may be named too, as in ``devinterp``; it
  holds the shared keys and values, so heads of one group overlap, and `names` does not list them.
* Where embedding and unembedding are one matrix, it is the component ``embed``, moved in both places; there is no
  ``unembed``.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from .shapes import Shape, tensors

Kind = Literal["head", "group", "mlp", "embed", "unembed", "full"]
FULL = "full"


@dataclass(frozen=True)
class Component:
    """A component: its kind, layer and index. ``str`` gives its name, which users, results and files use."""

    kind: Kind
    layer: int | None = None
    """The layer of a head, a group of heads or an MLP; None for the others."""
    index: int | None = None
    """The number of a head or a group in its layer; None for the others."""

    @classmethod
    def of(cls, name: str | Component) -> Component:
        """The component of a name; a `Component` is returned as it is.

        Raises:
            ValueError: if no model has a component of this name.
        """
        if isinstance(name, Component):
            return name
        if name in ("embed", "unembed", FULL):
            return cls(name)
        found = re.fullmatch(r"l(0|[1-9][0-9]*)(?:([hg])(0|[1-9][0-9]*)| mlp)", name)
        if found is None:
            raise ValueError(f"unknown component {name!r}: names are such as 'l0h1', 'l0g1', 'l0 mlp', 'embed', 'full'")
        if found[2] is None:
            return cls("mlp", int(found[1]))
        return cls("head" if found[2] == "h" else "group", int(found[1]), int(found[3]))

    def __str__(self) -> str:
        if self.layer is None:
            return self.kind
        return f"l{self.layer} mlp" if self.kind == "mlp" else f"l{self.layer}{self.kind[0]}{self.index}"

    @property
    def prefix(self) -> int | str:
        """What comes before the component: equal for all components of one layer, different for any others."""
        return self.kind if self.layer is None else self.layer


@dataclass(frozen=True)
class Block:
    """A slice of one parameter: ``weights[parameter][index]``."""

    parameter: str
    index: tuple[slice, ...] = ()

    def of(self, weights: Mapping[str, Tensor]) -> Tensor:
        """The block as a view into ``weights``."""
        return weights[self.parameter][self.index] if self.index else weights[self.parameter]


def names(shape: Shape) -> list[str]:
    """Names of all components: heads (or groups of heads) by layer, then MLPs, then ``embed`` and ``unembed``.

    Pythia-14M (6 layers, 4 heads) has 6 * 4 + 6 + 2 = 32.
    """
    kind, count = ("group", shape.groups) if shape.shared > 1 else ("head", shape.heads)
    heads = [Component(kind, layer, i) for layer in range(shape.layers) for i in range(count)]
    mlps = [Component("mlp", layer) for layer in range(shape.layers)]
    return [*map(str, [*heads, *mlps]), "embed", *(() if shape.tied else ("unembed",))]


@functools.cache
def _known(shape: Shape) -> dict[str, Component]:
    """All names that a model's components can be asked for by: those of `names`, single heads, and ``full``."""
    heads = [str(Component("head", layer, i)) for layer in range(shape.layers) for i in range(shape.heads)]
    return {name: Component.of(name) for name in (*names(shape), *heads, FULL)}


def components(model) -> list[str]:
    """Names of all components of ``model`` (a `LanguageModel`, a transformers model, a config dict or a `Shape`)."""
    if isinstance(model, Shape):
        return names(model)
    config = model if isinstance(model, Mapping) else model.config
    return names(Shape.from_config(config if isinstance(config, Mapping) else config.to_dict()))


def layer_of(component: str) -> int | None:
    """The layer of a head, a group of heads or an MLP; None for ``embed``, ``unembed`` and ``full``."""
    return Component.of(component).layer


def check_component(component: str | Component, shape: Shape) -> Component:
    """The component of that name (``full`` included). Raises a ValueError if the model has none of this name."""
    if found := _known(shape).get(str(component)):
        return found
    last = shape.layers - 1
    grouped = f", groups l0g0 to l{last}g{shape.groups - 1}" if shape.shared > 1 else ""
    ends = "'embed' (which is the unembedding too)" if shape.tied else "'embed' and 'unembed'"
    raise ValueError(
        f"unknown component {str(component)!r}: the model has heads l0h0 to l{last}h{shape.heads - 1}{grouped}, "
        f"MLPs 'l0 mlp' to 'l{last} mlp', {ends} ('full' is the whole model)"
    )


class Heads(NamedTuple):
    """The heads that a component of the attention weights holds."""

    queries: range
    group: int

    @classmethod
    def of(cls, component: Component, shape: Shape) -> Heads:
        """The heads of a component that is a head or a group."""
        number = component.index
        if component.kind == "group":
            return cls.sharing(number, shape)
        return cls(range(number, number + 1), number // shape.shared)

    @classmethod
    def sharing(cls, group: int, shape: Shape) -> Heads:
        """All heads that share the keys and values of a group."""
        return cls(range(group * shape.shared, (group + 1) * shape.shared), group)

    def columns(self, shape: Shape) -> slice:
        """The columns of these heads in the concatenated outputs of all heads of the layer."""
        return slice(self.queries.start * shape.head_dim, self.queries.stop * shape.head_dim)


def blocks(component: str | Component, shape: Shape, parameters: Sequence[str] = ()) -> tuple[Block, ...]:
    """The blocks of weights of a component, in the order in which `gather` flattens them.

    For a head: rows of queries, keys and values, their biases, the columns of the output projection. For an MLP: its
    matrices, each followed by its bias. For ``full``: every name in ``parameters``.
    """
    component, where = check_component(component, shape), shape.where
    if component.kind == "full":
        return tuple(Block(name) for name in parameters)
    if component.layer is None:
        return (Block(shape.embed if component.kind == "embed" else shape.unembed),)
    prefix = where.layer.format(component.layer)
    if component.kind == "mlp":
        kinds = ("weight", "bias") if "mlp" in shape.biases else ("weight",)
        return tuple(Block(f"{prefix}{matrix}.{kind}") for matrix in (*where.up, where.down) for kind in kinds)
    return head_blocks(Heads.of(component, shape), shape, prefix)


def head_blocks(heads: Heads, shape: Shape, prefix: str) -> tuple[Block, ...]:
    """The blocks of some heads of the layer whose tensors' names begin with ``prefix``."""
    where, dim = shape.where, shape.head_dim
    columns, group = heads.columns(shape), slice(heads.group * dim, (heads.group + 1) * dim)
    if where.fused == "interleaved":
        parts = [(where.attention[0], slice(3 * columns.start, 3 * columns.stop))]
    elif where.fused:
        shifts = (0, shape.heads * dim, 2 * shape.heads * dim)
        parts = [(where.attention[0], slice(columns.start + shift, columns.stop + shift)) for shift in shifts]
    else:
        parts = list(zip(where.attention, (columns, group, group), strict=True))

    def outputs(part: slice) -> tuple[slice, ...]:
        return (slice(None), part) if where.transposed else (part,)

    found = [Block(f"{prefix}{name}.weight", outputs(part)) for name, part in parts]
    if "attention" in shape.biases:
        found += [Block(f"{prefix}{name}.bias", (part,)) for name, part in parts]
    inputs = (columns,) if where.transposed else (slice(None), columns)
    return (*found, Block(f"{prefix}{where.out}.weight", inputs))


@functools.cache
def _sizes(shape: Shape) -> dict[str, tuple[int, ...]]:
    return dict(tensors(shape))


def weight_count(component: str | Component, shape: Shape) -> int:
    """Number of weights of a component, or of the whole model (``full``)."""
    sizes, total = _sizes(shape), 0
    for block in blocks(component, shape, tuple(sizes)):
        whole = sizes[block.parameter]
        index = block.index + (slice(None),) * (len(whole) - len(block.index))
        total += math.prod(len(range(*part.indices(length))) for part, length in zip(index, whole, strict=True))
    return total


def gather(weights: Mapping[str, Tensor], parts: Sequence[Block]) -> Float[Tensor, " parameters"]:
    """The blocks of a component as one flat copy."""
    return torch.cat([block.of(weights).reshape(-1) for block in parts])


def split(flat: Float[Tensor, " parameters"], shapes: Sequence[torch.Size]) -> list[Tensor]:
    """The flat weights of a component as its blocks: views, so that gradients flow back to ``flat``."""
    pieces = flat.split([shape.numel() for shape in shapes])
    return [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)]
