"""How much of some texts an inverter recovers, and that nothing of it is certified wrongly."""

from __future__ import annotations

import numpy as np

from invert_fast import Status


def rows_of(inverter, documents, texts, length):
    return [row for row in (inverter.encode(d)[:length] for d in documents) if len(row) == length][:texts]


def check(inverter, rows, **capture):
    found = inverter.invert(inverter.capture(rows, **capture))
    right = np.concatenate([r.token_ids == np.array(row) for r, row in zip(found, rows, strict=True)])
    certified = np.concatenate([r.status == Status.CERTIFIED for r in found])
    assert not (certified & ~right).any(), "a wrong token was certified"
    return right.mean(), certified.mean(), sum(r.cost.forward_tokens for r in found) / len(right)
