"""Tokens that cannot be told apart are never certified in place of each other, and said to be ambiguous."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from invert_fast import Exhaustive, Inverter

from .adversary import AMBIGUOUS, CERTIFIED, SMALL, drafted, judge, rounded, unit
from .families import build, embedding_table, exact, texts
from .pairs import all_but_pairwise_on_every_processor

pytestmark = pytest.mark.numeric


@pytest.mark.usefixtures("small_fits")
@pytest.mark.parametrize(
    ("family", "strategy", "layer"),
    all_but_pairwise_on_every_processor(
        ["gpt2", "llama", "opt", "gemma"], ["auto", "prior", "exhaustive"], [-1, "block:0"]
    ),
)
def test_tokens_with_equal_rows_are_ambiguous_and_exactly_those_are_named(family, layer, strategy):
    model = build(family, **SMALL)
    embedding_table(model)[[31, 47]] = embedding_table(model)[5].clone()
    embedding_table(model)[33] = embedding_table(model)[2].clone()
    inv = Inverter(model, layer=layer)
    classes = {i: {5, 31, 47} for i in (5, 31, 47)} | {i: {2, 33} for i in (2, 33)}
    truth = [[5, 9, 47, 47, 12, 33, 2, 7], [31], [8, 9], [2, 5]]
    for states, ids, recovery in zip(inv.capture(truth), truth, inv.invert(inv.capture(truth), strategy), strict=True):
        judge(inv, states, recovery)
        for t, token in enumerate(ids):
            named = {int(recovery.token_ids[t]), *recovery.alternatives.get(t, [])}
            assert named == classes.get(token, {token})
            assert recovery.status[t] == (AMBIGUOUS if token in classes else CERTIFIED)


CLOSE = [10.0**-k for k in range(1, 8)]


def with_near_duplicates(family: str, relative: float, seed: int, cluster: int = 2) -> Inverter:
    """The first 20 rows in groups of `cluster` that are `relative` of their length apart."""
    model, generator = build(family, seed % 3, **SMALL), torch.Generator().manual_seed(seed)
    table = embedding_table(model)
    for start in range(0, 20, cluster):
        for row in range(start + 1, min(start + cluster, 20)):
            table[row] = table[start] + relative * table[start].norm() * unit(table, generator)
    return Inverter(model)


def never_mistaken(family: str, relative: float, dtype: str, cluster: int, seed: int) -> None:
    """Every near-duplicate is drafted in place of every other: a certified token is the true one; else the truth is
    the token or among the others named."""
    inv = with_near_duplicates(family, relative, seed, cluster)
    truth = texts(*[8] * 6, vocab=24, seed=seed)
    drafts = [[i // cluster * cluster + (i + 1 + seed) % cluster if i < 20 else i for i in ids] for ids in truth]
    batch = rounded(inv.capture(truth), dtype)
    for strategy in (drafted(*truth), drafted(*drafts), drafted(*[[0] * 8] * 6)):
        for states, ids, recovery in zip(batch, truth, inv.invert(batch, strategy), strict=True):
            judge(inv, states, recovery, ids, sure=False)
            for t in np.flatnonzero(recovery.status == AMBIGUOUS).tolist():
                if not (recovery.token_ids[:t] != ids[:t]).any():
                    assert ids[t] in {int(recovery.token_ids[t]), *recovery.alternatives[t]}, f"position {t}"


@pytest.mark.parametrize(
    ("relative", "dtype", "family"),
    all_but_pairwise_on_every_processor(CLOSE, ["float32", "bfloat16"], ["gpt2", "llama"]),
)
def test_near_duplicates_are_never_mistaken(family, relative, dtype):
    never_mistaken(family, relative, dtype, 2, 0)


@pytest.mark.slow
@given(
    st.sampled_from(["gpt2", "llama", "opt", "gemma"]),
    st.floats(-8, 0).map(lambda x: 10.0**x),
    st.sampled_from(["float32", "float16", "bfloat16"]),
    st.sampled_from([2, 5, 20]),
    st.integers(0, 50),
)
def test_near_duplicates_at_any_distance_are_never_mistaken(family, relative, dtype, cluster, seed):
    never_mistaken(family, relative, dtype, cluster, seed)


@pytest.mark.usefixtures("small_fits")
@pytest.mark.parametrize("relative", CLOSE)
@pytest.mark.parametrize("strategy", ["auto", "exhaustive"])
def test_near_duplicates_proposed_by_our_own_strategies(relative, strategy):
    inv = with_near_duplicates("gpt2", relative, 0)
    truth = texts(*[8] * 12, vocab=20)
    for states, ids, recovery in zip(inv.capture(truth), truth, inv.invert(inv.capture(truth), strategy), strict=True):
        judge(inv, states, recovery, ids, sure=False)
        if relative >= 1e-4:
            assert exact([recovery], [ids])


@pytest.mark.parametrize("drafts", [True, False])
def test_every_token_of_a_large_cluster_is_named(drafts):
    """Twelve tokens within the noise of one another: all of them fit as well."""
    inv = with_near_duplicates("llama", 1e-7, 0, cluster=12)
    (found,) = inv.invert(inv.capture([[7, 25]]), drafted([4, 25]) if drafts else Exhaustive())
    assert found.status.tolist() == [AMBIGUOUS, CERTIFIED]
    assert {int(found.token_ids[0]), *found.alternatives[0]} == set(range(12))


def test_the_nearest_of_several_near_duplicates_counts():
    """One rival at 1e-6 hides among many at 3e-4."""
    inv = with_near_duplicates("gpt2", 3e-4, 0, cluster=20)
    table = embedding_table(inv.decoder.model)
    table[1::2] = table[0:-1:2] * (1 + 1e-6)
    table[20:] = embedding_table(build("gpt2", 1, **SMALL))[20:]
    inv = Inverter(inv.decoder.model)
    for token in range(20):
        states = inv.capture([[token, 30]])
        (found,) = inv.invert(states, drafted([token ^ 1, 30]))
        judge(inv, states[0], found, [token, 30])
