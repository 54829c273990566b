"""The Adversarial Robustness Toolbox: hidden-state inversion as a `ReconstructionAttack`.

estimator = HiddenStateEstimator(Inverter.from_pretrained("bundled"))
tokens, status = HiddenStateReconstruction(estimator).reconstruct(estimator.predict(texts))
"""

# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..inverter import Inverter
from ..types import InputError, Recovery
from .needs import ART

ART.check()
from art.attacks.attack import ReconstructionAttack  # noqa: E402
from art.estimators import BaseEstimator  # noqa: E402

NONE = -1  # where a row of tokens or of status ends before the longest


class HiddenStateEstimator(BaseEstimator):  # type: ignore[misc]
    """A model that hands out the hidden states of what it reads, as a split or a cached inference does.

    inverter: of the model and the layer; store_dtype: the precision of what it hands out; postprocessing_defences:
    ART's, applied to the states. ART asks for them as `[N, T, D]`: a batch's longest text gives T, rows behind the
    others are 0.
    """

    estimator_params = [*BaseEstimator.estimator_params, "store_dtype"]  # noqa: RUF012  # as ART has it

    def __init__(self, inverter: Inverter, store_dtype: str = "float32", postprocessing_defences: Any = None):
        super().__init__(
            model=inverter.decoder.model,
            clip_values=None,
            postprocessing_defences=postprocessing_defences,
            preprocessing=None,
        )
        self.inverter, self.store_dtype = inverter, store_dtype

    def predict(self, x: Sequence[Any] | np.ndarray, **kwargs: Any) -> np.ndarray:
        """States `[N, T, D]` fp32 of texts, or of rows of token ids (`NONE` behind their end)."""
        rows = [one if isinstance(one, str) else [int(i) for i in one if int(i) != NONE] for one in x]
        states = [s.hidden.float().numpy() for s in self.inverter.capture(rows, store_dtype=self.store_dtype)]
        out = np.zeros((len(states), max(map(len, states), default=0), self.inverter.decoder.width), np.float32)
        for row, one in zip(out, states, strict=True):
            row[: len(one)] = one
        out = self._apply_postprocessing(out, fit=False)
        for row, one in zip(out, states, strict=True):
            row[len(one) :] = 0  # a defence may have written there too
        return out

    def fit(self, x: Any, y: Any, **kwargs: Any) -> None:
        """There is nothing to fit: the model is used as it is."""
        raise NotImplementedError("a HiddenStateEstimator is not trained: train the model, then make another one")

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.inverter.decoder.max_length,)


class HiddenStateReconstruction(ReconstructionAttack):  # type: ignore[misc]
    """The input texts from the hidden states that an estimator hands out. White box: it has the weights.

    strategy: as `Inverter.invert` takes it.
    """

    _estimator_requirements = (HiddenStateEstimator,)
    attack_params = [*ReconstructionAttack.attack_params, "strategy"]  # noqa: RUF012  # as ART has it

    def __init__(self, estimator: HiddenStateEstimator, strategy: str = "auto"):
        super().__init__(estimator)
        self.strategy = strategy

    def reconstruct(self, x: np.ndarray, y: np.ndarray | None = None, **kwargs: Any) -> tuple[np.ndarray, np.ndarray]:
        """x: states `[N, T, D]` (rows of zeros behind a text's end), or `[T, D]` of one text; y: not used. Returns
        token ids and their `Status`, both `[N, T]` int64, `NONE` behind a text's end. `recoveries` has all the rest."""
        found = self.recoveries(x, **kwargs)
        shape = len(found), max((len(one.token_ids) for one in found), default=0)
        tokens, status = np.full(shape, NONE, np.int64), np.full(shape, NONE, np.int64)
        for row, one in enumerate(found):
            tokens[row, : len(one.token_ids)] = one.token_ids
            status[row, : len(one.status)] = one.status
        return tokens, status

    def recoveries(self, x: np.ndarray, **options: Any) -> list[Recovery]:
        """As `Inverter.invert`, of states as `reconstruct` takes them: text, certificate and figures of each."""
        states = np.asarray(x)
        if states.ndim not in (2, 3):
            raise InputError(
                f"states have shape {list(states.shape)}, expected [N, T, D] or [T, D]: give what predict gave"
            )
        batch = states[None] if states.ndim == 2 else states
        ends = [int(np.max(np.flatnonzero(row.any(-1)), initial=-1)) + 1 for row in batch]
        texts = [row[:end] for row, end in zip(batch, ends, strict=True)]
        return self.estimator.inverter.invert(texts, self.strategy, **options)
