"""The shipped study of the planted language, token by token: purities, what is free of charge, and comparisons."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray
from scipy import stats

from spectrolib.checks.intervals import Estimate
from spectrolib.estimator import standardise
from spectrolib.model.loading import LanguageModel, engine_of, load_model

from . import language as planted
from . import purity

Array = Float[ndarray, " tokens"]


@dataclass(frozen=True)
class ShippedStudy:
    """The arrays of `purity.survey` for the shipped model, beside the probe that they belong to.

    For the question ``same`` only tokens that all reasons share are asked; the others have a value of NaN.
    """

    language: planted.Language
    model: LanguageModel
    asked: purity.Probe
    manifest: dict
    arrays: dict[str, ndarray]

    @classmethod
    def load(cls) -> ShippedStudy:
        """What ships.

        Raises:
            ValueError: if the study belongs to another model or probe than those that ship.
        """
        model, (manifest, arrays) = load_model(planted.FOLDER, device="cpu"), purity.shipped()
        _, asked = purity.shipped_probe()
        for name, found in (("model", model.hash), ("probe", asked.windows.hash)):
            if manifest[name] != found:
                raise ValueError(f"{purity.SHIPPED.name} is of another {name}: run python -m spectrobook planted")
        return cls(planted.Language(), model, asked, manifest, arrays)

    @cached_property
    def loss(self) -> Array:
        """Loss of each token of the probe at w*, nats."""
        return engine_of(self.model).losses(self.asked.windows).flatten().numpy()[self.asked.kept]

    @cached_property
    def shared(self) -> Bool[ndarray, " tokens"]:
        """Whether all reasons share the token."""
        return np.array([self.language.words[token].startswith("x") for token in self.asked.token])

    @cached_property
    def allowed(self) -> dict[str, Bool[ndarray, "tokens tokens"]]:
        """Who may be whose neighbour, for each of `purity.KINDS`."""
        return {kind: purity.allowed(kind, self.asked.token, self.asked.previous) for kind in purity.KINDS}

    def of_kind(self, values: Array, kind: str) -> Array:
        """Values of the tokens that a question is asked of."""
        return np.where(self.shared | (kind != "same"), values, np.nan)

    def purity(self, name: str, kind: str, posterior: int = 0, draws: int | None = None) -> Array:
        """Purity with rows of one of `purity.VARIANTS`, from all draws of the posterior unless said otherwise."""
        made = purity.DRAWS.index(purity.POSTERIORS[posterior][2] if draws is None else draws)
        variant, question = purity.VARIANTS.index(name), purity.KINDS.index(kind)
        return self.of_kind(self.arrays["purity"][posterior, made, variant, question], kind)

    def of_rows(self, rows: Float[ndarray, "tokens axes"], kind: str) -> Array:
        """Purity with any rows."""
        near = purity.neighbours(rows, purity.K, self.allowed[kind])
        return self.of_kind(purity.purity(near, self.asked.reason), kind)

    def of_loss(self, kind: str) -> Array:
        """Purity with the loss alone for a row."""
        return self.of_rows(self.loss[:, None], kind)

    def chance(self, kind: str) -> Array:
        """Purity with neighbours at random."""
        return self.of_kind(purity.chance(self.asked.reason, self.allowed[kind], purity.K), kind)

    def sharing(self, what: str) -> Array:
        """Part of the tokens with the same ``token``, or the same ``previous`` one, that have the same reason."""
        values = getattr(self.asked, what)
        return purity.chance(self.asked.reason, self.allowed["all"] & (values[:, None] == values), 1)

    def interval(self, values: Array) -> Estimate:
        """Mean over tokens with its 95 % interval over windows."""
        return Estimate(*purity.interval(values, self.asked.window))

    @property
    def control(self) -> int:
        """The posterior at nβ = 0, as an index into `purity.POSTERIORS`."""
        return next(i for i, p in enumerate(purity.POSTERIORS) if p[0] == 0)

    def runs(self, posterior: int) -> list[int]:
        """Runs of one posterior, which differ in their noise."""
        return [i for i, p in enumerate(purity.POSTERIORS) if p[:2] == purity.POSTERIORS[posterior][:2]]

    def over_chains(self, name: str, kind: str, posterior: int = 0) -> Float[ndarray, " chains"]:
        """Mean purity of the rows that each single chain gives."""
        variant, question = purity.VARIANTS.index(name), purity.KINDS.index(kind)
        return self.arrays["by_chain"][self.runs(posterior), :, variant, question].ravel()

    def gain(self, name: str, kind: str, control: str, posterior: int = 0) -> Estimate:
        """Difference of purity over a control, mean and 95 % t-interval when each chain stands for itself.

        Args:
            control: one of `purity.VARIANTS`.
            posterior: the control's; rows are those of the main posterior.
        """
        gain = self.over_chains(name, kind) - self.over_chains(control, kind, posterior)
        half = stats.t(len(gain) - 1).ppf(0.975) * gain.std(ddof=1) / np.sqrt(len(gain))
        return Estimate(gain.mean(), gain.mean() - half, gain.mean() + half)

    def without_loss(self, rows: Float[ndarray, "tokens axes"]) -> Float[ndarray, "tokens axes"]:
        """Rows less the best curve of degree six in the rank of the loss, column by column, standardised again."""
        place = np.argsort(np.argsort(self.loss)) / len(self.loss)
        smooth = np.polynomial.legendre.legvander(2 * place - 1, 6)
        return standardise(rows - smooth @ np.linalg.lstsq(smooth, rows, rcond=None)[0])
