"""An explanation's figures are those of the model and its lens, and its certificates those of the engine."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from invert_fast import InputError, Inverter, Reading, Status
from invert_fast.explain import Explanation, explain, looking, reason
from invert_fast.explain.explaining import explain_states
from invert_fast.lens.choose import choose_lens

from ..adversary import SMALL
from ..diagnose.captures import TEXT, bundled
from ..families import build, embedding_table, make


@pytest.fixture(scope="module")
def plain() -> Explanation:
    return explain(bundled(), TEXT)


def test_ranks_and_the_draft_are_those_of_whole_tables(plain):
    inverter, ids = bundled(), bundled().encode(TEXT)
    (states,) = inverter.capture([ids])
    lens = choose_lens(inverter.decoder, inverter.vocabulary)
    with torch.no_grad():
        proxies = lens.proxies(states.hidden[None])[0]
        scores = lens.scores(proxies, torch.arange(len(ids)) == 0)
        prior = inverter.decoder.model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
    assert plain.lens == lens.kind
    for t, one in enumerate(plain):
        assert (one.position, one.token_id) == (t, ids[t])
        assert one.lens_rank == int((scores[t] > scores[t, ids[t]]).sum())
        assert one.draft_id == ids[t] or one.lens_rank > 0
        if t:
            assert one.prior_rank == int((prior[t - 1] > prior[t - 1, ids[t]]).sum())
            assert one.prior_probability == pytest.approx(float(prior[t - 1, ids[t]].exp()), rel=1e-3)
    assert (plain[0].prior_rank, plain[0].prior_probability) == (None, None)
    assert "".join(one.token or "" for one in plain) == TEXT


def test_residuals_are_those_of_the_models_own_pass(plain):
    inverter, ids = bundled(), bundled().encode(TEXT)
    (states,) = inverter.capture([ids])
    for t in (0, 1, len(ids) - 1):
        one, row = plain[t], states.hidden[t]
        assert 1 <= len(one.rivals) <= 5
        for rival in one.rivals:
            assert rival.token_id != ids[t]
            there = inverter.decoder.capture(torch.tensor([[*ids[:t], rival.token_id]]))[0, -1]
            assert rival.residual == pytest.approx(float((there - row).norm() / row.norm()), rel=1e-3)
        assert [r.residual for r in one.rivals] == sorted(r.residual for r in one.rivals)
        assert one.margin == one.rivals[0].residual - one.residual
        nearest = inverter.vocabulary.neighbours.of(torch.tensor([ids[t]]))[0][0, 0]
        assert int(nearest) in [r.token_id for r in one.rivals]


def test_no_table_of_all_positions_and_all_tokens_is_made(plain, monkeypatch):
    inverter = bundled()
    lens, shapes = choose_lens(inverter.decoder, inverter.vocabulary), []
    scores, log_probs = type(lens).scores, type(inverter.decoder).log_probs

    def seen(call):
        def through(*given):
            found = call(*given)
            shapes.append(found.shape)
            return found

        return through

    monkeypatch.setattr(type(lens), "scores", seen(scores))
    monkeypatch.setattr(type(inverter.decoder), "log_probs", seen(log_probs))
    monkeypatch.setattr(looking, "_SCORES_AT_ONCE", 3 * inverter.vocabulary.size)
    again = explain(inverter, TEXT)
    assert {shape[-1] for shape in shapes} == {inverter.vocabulary.size}
    assert max(shape[0] for shape in shapes) == 3 < len(plain)
    assert [one.lens_rank for one in again] == [one.lens_rank for one in plain]
    assert [one.prior_rank for one in again] == [one.prior_rank for one in plain]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_certificates_are_those_of_an_inversion(dtype):
    inverter = bundled()
    found = explain(inverter, TEXT, store_dtype=dtype, max_tokens=12)
    (auto,) = inverter.invert(inverter.capture([TEXT], store_dtype=dtype, max_tokens=12))
    assert [one.status for one in found] == auto.status.tolist()
    assert [one.found_id for one in found] == auto.token_ids.tolist() == [one.token_id for one in found]
    assert found.certified
    assert (found.layer, found.states_dtype) == (inverter.decoder.layer.name, dtype)
    for one in found:
        assert one.residual <= one.tolerance
        assert one.reason == (reason.ALONE if one.bound > one.required else reason.TRIED)
        assert f"{one.residual:.1e}" in one.why


def test_the_prior_of_an_inner_layer_is_that_of_the_whole_model(small_fits):
    ids, inverter = [9, 47, 12, 200, 3], Inverter(make("gpt2"), layer="block:0")
    found = explain(inverter, ids)
    with torch.no_grad():
        prior = inverter.decoder.model(torch.tensor([ids])).logits[0].float()
    assert found.layer == "block:0"
    assert found.certified
    assert [one.prior_rank for one in found[1:]] == [
        int((prior[t - 1] > prior[t - 1, ids[t]]).sum()) for t in range(1, len(ids))
    ]


def test_tokens_of_equal_rows_are_said_to_be(small_fits):
    model = build("gpt2", **SMALL)
    embedding_table(model)[[31, 47]] = embedding_table(model)[5].clone()
    found = explain(Inverter(model), [9, 47, 12])
    assert [one.status for one in found] == [Status.CERTIFIED, Status.AMBIGUOUS, Status.CERTIFIED]
    assert found[1].reason == reason.EQUAL
    assert not {5, 31, 47} & {rival.token_id for rival in found[1].rivals}
    assert found[1].token is None
    assert not found.certified


def test_states_that_are_not_the_texts_are_not_explained_away():
    inverter, ids = bundled(), bundled().encode(TEXT)[:8]
    (states,) = inverter.capture([ids])
    damaged = states.hidden.clone()
    damaged[3] = damaged[3].flip(0)
    found = explain_states(inverter, ids, replace(states, hidden=damaged))
    assert [one.status for one in found[:3]] == [Status.CERTIFIED] * 3
    assert found[3].status == Status.NOT_FOUND
    assert found[3].reason == reason.NOWHERE
    assert found[3].residual > found[3].tolerance
    assert {one.reason for one in found[4:]} == {reason.BEHIND}
    other = [*ids]
    other[2] = ids[2] + 1
    misled = explain_states(inverter, other, states)
    assert misled[2].found_id == ids[2] != misled[2].token_id
    assert misled[2].reason == reason.OTHER
    assert misled[2].margin < 0
    assert misled[2].rivals[0].token_id == ids[2]
    assert {one.reason for one in misled[3:]} == {reason.MISLED}
    assert not misled.certified


def test_what_cannot_be_explained_is_refused_and_no_text_is_nothing(plain):
    assert len(explain(bundled(), "")) == 0
    assert explain(bundled(), "").certified
    one = explain(bundled(), [42])
    assert (len(one), one[0].prior_rank) == (1, None)
    with pytest.raises(InputError, match="near is 0"):
        explain(bundled(), TEXT, near=0)
    with pytest.raises(InputError, match="without a `reading`"):
        explain(Inverter(bundled().decoder.model, reading=Reading(scale=2.0)), [1])
    rows = [json.loads(json.dumps(one.as_json(), allow_nan=False)) for one in plain]
    assert [row["status"] for row in rows] == ["certified"] * len(plain)
    assert rows[3]["rivals"][0]["residual"] == plain[3].rivals[0].residual
