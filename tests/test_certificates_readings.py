"""States that were centred, scaled, normalised, shifted, or cut off a known prefix: read so, the text is certified, and
never a wrong token, whatever is proposed and however the rows are damaged."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from invert_fast import Inverter, Reading, Recovery

from .adversary import AMBIGUOUS, CERTIFIED, SMALL, drafted
from .families import build, embedding_table, exact
from .families import texts as any_texts
from .pairs import all_but_pairwise_on_every_processor
from .readings import READINGS, handed_out, model_of, reader

pytestmark = pytest.mark.numeric
some = pytest.mark.parametrize("family", ["gpt2", "llama"])
every_reading = pytest.mark.parametrize("name", READINGS)
LAYER = 1


def texts(*lengths: int, seed: int = 0) -> list[list[int]]:
    return any_texts(*lengths, vocab=SMALL["vocab"], seed=seed)


def drafts(reading: Reading, *ids: list[int]):
    """A strategy that drafts these texts behind the prefix, then tries every token."""
    return drafted(*([*reading.prefix, *text] for text in ids))


def judge(family: str, layer: int, reading: Reading, rows: Tensor, found: Recovery, truth: list[int] | None) -> None:
    """What is certified is the truth, where there is one, and the one token of all whose state, as it would be handed
    out, is nearest."""
    model, vocab = model_of(family), len(embedding_table(model_of(family)))
    assert len(found.token_ids) == len(found.status) == len(rows)
    for t in np.flatnonzero(found.status == CERTIFIED).tolist():
        token, before = int(found.token_ids[t]), found.token_ids[:t].tolist()
        assert truth is None or token == truth[t], f"position {t}: certified {token}, the truth is {truth[t]}"
        others = torch.tensor([[*before, v] for v in range(vocab)])
        states = handed_out(model, layer, reading, others)[:, -1]
        residuals = (states - rows[t]).norm(dim=-1) / rows[t].norm()
        assert residuals.argmin() == token, f"position {t}: another token than {token} is nearer"
        assert (residuals < residuals[token] + 1e-5).sum() == 1, f"position {t}: {token} is not alone"


@pytest.mark.parametrize(
    ("name", "family", "layer"), all_but_pairwise_on_every_processor([*READINGS], ["gpt2", "llama"], [LAYER, -1])
)
def test_what_is_read_as_it_was_handed_out_is_certified(family, name, layer):
    truth = texts(11, 1, 6)
    rows = [handed_out(model_of(family), layer, READINGS[name], ids) for ids in truth]
    strategy = "auto" if layer == LAYER else drafts(READINGS[name], *texts(11, 1, 6, seed=1))
    found = reader(family, layer, name).invert(rows, strategy)
    assert exact(found, truth)
    for text, recovery, ids in zip(rows, found, truth, strict=True):
        judge(family, layer, READINGS[name], text, recovery, ids)


@some
@pytest.mark.parametrize("name", ["centered", "unit", "prefix", "offset"])
def test_rounded_rows_are_certified_by_the_noise_of_rounding(family, name):
    truth = texts(11)
    rows = handed_out(model_of(family), LAYER, READINGS[name], truth[0]).to(torch.bfloat16)
    (found,) = reader(family, LAYER, name).invert(rows, drafts(READINGS[name], *truth), compute_dtype="float32")
    judge(family, LAYER, READINGS[name], rows.float(), found, truth[0])
    assert (found.status == CERTIFIED).mean() > 0.5


@pytest.mark.slow
@given(
    st.sampled_from(["gpt2", "llama"]),
    st.sampled_from([*READINGS]),
    st.floats(-6, 0.5).map(lambda x: 10.0**x),
    st.integers(0, 1000),
)
def test_noise_and_hostile_drafts_certify_nothing_wrong(family, name, sigma, seed):
    truth, wrong = texts(7, seed=seed), texts(7, seed=seed + 1)
    rows = handed_out(model_of(family), LAYER, READINGS[name], truth[0])
    noise = torch.randn(rows.shape, generator=torch.Generator().manual_seed(seed))
    rows = rows + sigma * noise * rows.square().mean(-1, keepdim=True).sqrt()
    for draft in (truth, wrong):
        (found,) = reader(family, LAYER, name).invert(rows, drafts(READINGS[name], *draft))
        judge(family, LAYER, READINGS[name], rows, found, truth[0])
        if sigma > 0.5:
            assert CERTIFIED not in found.status


@pytest.mark.slow
@given(
    st.sampled_from(["gpt2", "llama"]),
    st.sampled_from([*READINGS]),
    st.sampled_from(["another text", "random", "zero", "constant", "tiny", "huge", "negated"]),
    st.integers(0, 6),
    st.integers(0, 1000),
)
def test_damaged_rows_certify_nothing_wrong(family, name, kind, at, seed):
    reading, (truth, other) = READINGS[name], texts(7, 7, seed=seed)
    rows, foreign = (handed_out(model_of(family), LAYER, reading, ids) for ids in (truth, other))
    random = torch.randn(rows.shape[1], generator=torch.Generator().manual_seed(seed))
    row = rows[at].clone()
    rows[at] = {
        "another text": foreign[at],
        "random": random,
        "zero": torch.zeros_like(row),
        "constant": torch.ones_like(row),
        "tiny": row * 1e-30,
        "huge": row * 1e30,
        "negated": -row,
    }[kind]
    for draft in (truth, other):
        (found,) = reader(family, LAYER, name).invert(rows, drafts(reading, draft))
        assert found.token_ids[:at].tolist() == truth[:at]
        assert (found.status[:at] == CERTIFIED).all()
        if not reading.unit or kind not in ("tiny", "huge"):  # whose direction is the state's still
            judge(family, LAYER, reading, rows, found, None)
        for figures in (found.residual, found.margin, found.discrete_loss):
            assert np.isfinite(figures).all()


@some
@every_reading
def test_states_that_were_handed_out_otherwise_are_never_certified_wrong(family, name):
    """Read so that less of a state is compared than is there, the right tokens may be certified; else none is."""
    truth, read = texts(9), READINGS[name]
    for other, reading in READINGS.items():
        rows = handed_out(model_of(family), LAYER, reading, truth[0])
        (found,) = reader(family, LAYER, name).invert(rows, drafts(read, *truth))
        sure = found.status == CERTIFIED
        assert (found.token_ids == truth[0])[sure].all(), (name, other)
        if reading.prefix != read.prefix or (read.scale != "unit" and reading.scale != read.scale):
            assert not sure.any(), (name, other)


@pytest.mark.parametrize("length", [1, 5])
def test_a_wrong_prefix_certifies_nothing_behind_it(length):
    truth, reading = texts(length), READINGS["prefix"]
    rows = handed_out(model_of("gpt2"), LAYER, reading, truth[0])
    for prefix in ((), (1,), (17, 1), (1, 18), (1, 17, 17)):
        inv = Inverter(model_of("gpt2"), layer=LAYER, reading=Reading(prefix=prefix))
        (found,) = inv.invert(rows, drafted([*prefix, *truth[0]]))
        assert len(found.token_ids) == length
        assert CERTIFIED not in found.status


def test_tokens_that_differ_only_in_what_is_taken_out_are_ambiguous():
    """Rows that differ by a shift show in a state and not in a centred one; by a factor, not in a direction."""
    shifted, stretched = build("gpt2"), build("llama")
    embedding_table(shifted)[5] = embedding_table(shifted)[4] + 0.3
    embedding_table(stretched)[5] = 2 * embedding_table(stretched)[4]
    for model, layer, reading in ((shifted, LAYER, Reading(centered=True)), (stretched, 0, Reading(scale="unit"))):
        text = [7, 4, 9, 5]
        for read, wanted in ((Reading(), CERTIFIED), (reading, AMBIGUOUS)):
            inv = Inverter(model, layer=layer, reading=read)
            (found,) = inv.invert(handed_out(model, layer, read, text), drafted(text))
            assert found.status.tolist() == [CERTIFIED, wanted, CERTIFIED, wanted]
            if wanted == AMBIGUOUS:
                for t in (1, 3):
                    assert {int(found.token_ids[t]), *found.alternatives[t]} == {4, 5}
