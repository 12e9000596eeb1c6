"""Sparse autoencoders: a TopK autoencoder for a model's activations, and its health.

An autoencoder writes an activation vector x as a sum of few directions out of many:

    a = TopK(W (x - b) + c),    x ≈ b + Σ_f a_f d_f,    a >= 0

A direction d_f with its magnitude a_f is a *feature*. `matching` compares features with clusters, `formats` reads and
writes files, `spectrolib.model.activations` takes the vectors from a model.

There is a well-kept package, `eai-sparsify` 1.3.3, and it does train on the bundled model, on a processor and with no
network. We train by ourselves all the same, in a hundred lines: its trainer takes a model and its tokens only, while
our tests need vectors whose features are known; it runs the model again at every step, where here several passes over
few tokens are wanted; and it brings five more packages into an install that shall stay small. Files have its format.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy import ndarray
from scipy.sparse import csr_array
from torch import Tensor

from ..model.activations import activations, place, spliced_loss, untrained
from ..model.loading import engine_of
from .matching import Matches, match, match_rate
from .windows import probe_windows, token_rows

__all__ = [
    "Autoencoder",
    "Health",
    "Matches",
    "Recipe",
    "activations",
    "health",
    "match",
    "match_rate",
    "probe_windows",
    "sparsest",
    "token_rows",
    "train",
    "untrained",
]

_CHUNK = 2**24
"""Numbers in the largest dense block of tokens x features."""


# The autoencoder -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Autoencoder:
    """A dictionary of directions, and the encoder that says how much of each is in a vector."""

    encoder: Float[Tensor, "features width"]
    encoder_bias: Float[Tensor, " features"]
    decoder: Float[Tensor, "features width"]
    bias: Float[Tensor, " width"]
    k: int | None
    """Largest number of features active at once; None: every feature above zero is (a ReLU)."""
    site: str
    card: Mapping = field(default_factory=dict, compare=False)
    """How it was made, and its health."""

    @property
    def features(self) -> int:
        return len(self.encoder)

    @property
    def width(self) -> int:
        return self.encoder.shape[1]

    @torch.no_grad()
    def encode(self, x: Float[ndarray, "tokens width"]) -> csr_array:
        """Magnitudes (tokens, features), sparse.

        Raises:
            ValueError: for vectors of another width.
        """
        x = torch.as_tensor(np.asarray(x), dtype=torch.float32)
        if x.ndim != 2 or x.shape[1] != self.width:
            raise ValueError(f"activations must have shape (tokens, {self.width}), got {tuple(x.shape)}")
        parts = x.split(max(1, _CHUNK // self.features))
        dense = (F.linear(part - self.bias, self.encoder, self.encoder_bias) for part in parts)
        return _stack([_sparse(a, self.k) for a in dense], self.features)

    def decode(self, magnitudes: csr_array) -> Float[ndarray, "tokens width"]:
        """The vectors that the magnitudes describe: b + Σ_f a_f d_f."""
        return np.asarray(magnitudes @ self.decoder.numpy()) + self.bias.numpy()

    def reconstruct(self, x: Float[ndarray, "tokens width"]) -> Float[ndarray, "tokens width"]:
        """Encode and decode: the vectors as the features describe them."""
        return self.decode(self.encode(x))


def sparsest(values: Float[ndarray, "tokens directions"], k: int) -> csr_array:
    """The k largest positive values of each token, so that any directions compare with a TopK autoencoder."""
    dense = torch.as_tensor(np.asarray(values), dtype=torch.float32)
    return _stack([_sparse(part, k) for part in dense.split(max(1, _CHUNK // dense.shape[1]))], dense.shape[1])


def _sparse(dense: Float[Tensor, "tokens features"], k: int | None) -> tuple[ndarray, ndarray, ndarray]:
    """Values that are kept, their columns, and how many each row has."""
    if k is None:
        keep = dense > 0
        return dense[keep].numpy(), keep.nonzero()[:, 1].numpy(), keep.sum(dim=1).numpy()
    values, columns = dense.topk(min(k, dense.shape[1]), dim=1)
    columns, order = columns.sort(dim=1)
    values = values.gather(1, order)
    keep = values > 0
    return values[keep].numpy(), columns[keep].numpy(), keep.sum(dim=1).numpy()


def _stack(parts: list, columns: int) -> csr_array:
    values, indices, counts = (np.concatenate(pieces) for pieces in zip(*parts, strict=True))
    starts = np.append(0, np.cumsum(counts))
    return csr_array((values, indices.astype(np.int32), starts), shape=(len(counts), columns))


# Training ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """How an autoencoder is trained."""

    features: int = 1024
    k: int = 16
    """Features active at once."""
    passes: int = 4
    """Times that each activation vector is seen."""
    batch: int = 1024
    rate: float = 1e-2
    """Peak learning rate of Adam; a tenth of the steps warm up, the last half decays to zero."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.k <= self.features:
            raise ValueError(f"k must lie between 1 and the {self.features} features, got {self.k}")
        if min(self.passes, self.batch) < 1 or self.rate <= 0:
            raise ValueError("passes and batch must be at least 1, rate above 0")


def train(x: Float[ndarray, "tokens width"], recipe: Recipe | None = None, *, site: str = "", **changes) -> Autoencoder:
    """Train a TopK autoencoder (Gao et al., 2024) on activation vectors.

    The loss is the part of the variance that is not explained; decoder directions have norm one. There is no auxiliary
    loss that revives dead features: on the bundled model hardly any die without one, as the cards say.

    Args:
        x: activation vectors; each token counts the same.
        recipe: settings; ``changes`` replace some of them.
        site: where ``x`` was taken.

    Raises:
        ValueError: for vectors that are not finite or fewer than a batch, or settings out of range.
    """
    recipe = replace(recipe or Recipe(), **changes)
    x = torch.as_tensor(np.asarray(x), dtype=torch.float32)
    if x.ndim != 2 or len(x) < recipe.batch:
        raise ValueError(f"training needs at least one batch of {recipe.batch} vectors, got shape {tuple(x.shape)}")
    if not x.isfinite().all():
        raise ValueError("activations hold values that are not finite")
    scale = (x - x.mean(dim=0)).square().mean().sqrt().clamp_min(1e-12)  # the recipe is for vectors of unit spread
    trainer = _Trainer(x / scale, recipe)
    steps = recipe.passes * (len(x) // recipe.batch)
    for step, rows in enumerate(trainer.batches()):
        trainer.step(trainer.x[rows], min(1.0, 10 * (step + 1) / steps, 2 * (1 - step / steps)))
    encoder, encoder_bias, decoder, bias = (w.detach() for w in trainer.weights)
    card = {"recipe": asdict(recipe), "tokens": len(x), "steps": steps}
    return Autoencoder(encoder, encoder_bias * scale, decoder, bias * scale, recipe.k, site, card)


class _Trainer:
    """Weights of an autoencoder on their way."""

    def __init__(self, x: Float[Tensor, "tokens width"], recipe: Recipe):
        self.x, self.recipe = x, recipe
        self.generator = torch.Generator().manual_seed(recipe.seed)
        directions = F.normalize(torch.randn(recipe.features, x.shape[1], generator=self.generator), dim=1)
        self.weights = [directions.clone(), torch.zeros(recipe.features), directions, x.mean(dim=0)]
        for weight in self.weights:
            weight.requires_grad_()
        self.optimiser = torch.optim.Adam(self.weights, fused=True)

    def batches(self):
        for _ in range(self.recipe.passes):
            order = torch.randperm(len(self.x), generator=self.generator)
            whole = len(order) - len(order) % self.recipe.batch
            yield from order[:whole].split(self.recipe.batch)

    def step(self, x: Float[Tensor, "batch width"], share: float) -> None:
        """One step of Adam, at this share of the peak rate."""
        encoder, encoder_bias, decoder, bias = self.weights
        magnitudes, chosen = F.linear(x - bias, encoder, encoder_bias).topk(self.recipe.k, dim=1, sorted=False)
        again = bias + F.embedding_bag(chosen, decoder, per_sample_weights=magnitudes.relu(), mode="sum")
        loss = (x - again).square().sum() / (x - x.mean(dim=0)).square().sum()
        for group in self.optimiser.param_groups:
            group["lr"] = self.recipe.rate * share
        self.optimiser.zero_grad()
        loss.backward()
        with torch.no_grad():
            decoder.grad -= (decoder.grad * decoder).sum(dim=1, keepdim=True) * decoder  # along the sphere
            self.optimiser.step()
            decoder.copy_(F.normalize(decoder, dim=1))


# Health --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Health:
    """How good an autoencoder is, in the usual figures, on text that it was not trained on."""

    explained_variance: float
    """1 - |x - x̂|² / |x - mean|², summed over tokens."""
    loss: float
    """Loss of the model, nats per token."""
    spliced_loss: float
    """Loss with the reconstruction in place of the activations."""
    mean_loss: float
    """Loss with the mean activation in their place."""
    zero_loss: float
    """Loss with zeros in their place."""
    active: float
    """Features active on a token, on average."""
    density: Float[ndarray, " features"]
    """The part of the tokens on which each feature is active."""

    @property
    def recovered(self) -> float:
        """Loss recovered: 1 is the model's own, 0 that with the mean activation (a stricter baseline than zeros)."""
        return (self.mean_loss - self.spliced_loss) / (self.mean_loss - self.loss)

    @property
    def dead(self) -> float:
        """The part of the features that are active on no token."""
        return float((self.density == 0).mean())

    def summary(self) -> dict:
        """JSON-able figures, with a histogram of densities by decades."""
        edges = [0.0, 1e-4, 1e-3, 1e-2, 1e-1, 1.0]
        living = np.histogram(self.density[self.density > 0], edges)[0].tolist()
        figures = {name: round(value, 5) for name, value in vars(self).items() if name != "density"}
        figures |= {"recovered": round(self.recovered, 5), "dead": round(self.dead, 5)}
        return figures | {"density_edges": edges, "density_counts": living}


@torch.no_grad()
def health(autoencoder: Autoencoder, model, windows) -> Health:
    """Measure an autoencoder on windows of text.

    Args:
        model: a `LanguageModel`, or its `Engine`.

    Raises:
        ValueError: for "neurons", in whose place nothing can be spliced, or an autoencoder of another width.
    """
    engine = engine_of(model)
    layer, part = place(autoencoder.site, engine.shape.layers)
    if part == "neurons":
        raise ValueError("an autoencoder of neurons cannot be spliced: take one of residual, attention or mlp")
    ids = engine.ids(windows)
    inputs, targets = ids[:, :-1], ids[:, 1:]
    x = torch.from_numpy(activations(engine, inputs, autoencoder.site)).flatten(0, 1)
    magnitudes = autoencoder.encode(x.numpy())
    again, mean = torch.from_numpy(autoencoder.decode(magnitudes)), x.mean(dim=0)
    losses = {
        name: spliced_loss(engine, inputs, targets, layer, part, values)
        for name, values in (("own", x), ("again", again), ("mean", mean.expand_as(x)), ("zero", torch.zeros_like(x)))
    }
    return Health(
        explained_variance=float(1 - (x - again).square().sum() / (x - mean).square().sum()),
        loss=losses["own"],
        spliced_loss=losses["again"],
        mean_loss=losses["mean"],
        zero_loss=losses["zero"],
        active=magnitudes.nnz / len(x),
        density=np.bincount(magnitudes.indices, minlength=autoencoder.features) / len(x),
    )
