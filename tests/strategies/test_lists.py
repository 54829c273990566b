"""Short lists of candidates, which large vocabularies have, on small ones: the same texts, whatever the lists miss."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch

from invert_fast import Inverter
from invert_fast.lens import choose_lens
from invert_fast.lens.linear import LinearLens
from invert_fast.lens.prior import draft_proxies, draft_scores
from invert_fast.ops.best_two import LISTED
from invert_fast.strategies.speculative import Speculative

from ..families import FAMILIES, VOCAB, build, exact, inverter, texts

LENGTHS = (1, 17, 6, 30)


@pytest.fixture(autouse=True)
def lists(monkeypatch):
    monkeypatch.setattr(import_module("invert_fast.strategies.candidates"), "MANY_TOKENS", 1)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layer", [-1, 1])
def test_texts_are_exact_and_certified_with_lists(family, layer):
    inv, truth = inverter(family, layer), texts(*LENGTHS)
    assert exact(inv.invert(inv.capture(truth)), truth)


@pytest.mark.parametrize(("kept", "from_all"), [(1, 4096), (5, 4096), (1, 2)])
def test_what_the_lists_miss_is_found_in_the_whole_vocabulary(kept, from_all, monkeypatch):
    """Lists of a few tokens, the first of which are no answers: the right one is among the others at best."""
    whole = LinearLens.lists

    def short(self, proxies):
        ids, scores = whole(self, proxies)
        ids, scores = ids.roll(-2, -1), scores.clone()
        ids[..., kept:], scores[..., kept:] = -1, -torch.inf
        return ids, scores

    monkeypatch.setattr(LinearLens, "lists", short)
    monkeypatch.setattr(import_module("invert_fast.strategies.candidates"), "_FROM_ALL", from_all)
    inv, truth = inverter("llama"), texts(*LENGTHS)
    found = inv.invert(inv.capture(truth), Speculative(max_candidates=None))
    assert exact(found, truth)
    assert sum(r.cost.repair for r in found) > 0


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma"])
@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_the_prior_joins_the_lists_tied_or_not(family, weight):
    """As the scores of all tokens say that are made of a lens's and the prior's, but for a constant each row."""
    inv = Inverter(build(family))
    decoder, lens = inv.decoder, choose_lens(inv.decoder, inv.vocabulary)
    hidden = decoder.capture(torch.tensor(texts(9, 9)))
    proxies = draft_proxies(decoder, lens, hidden, weight)
    ids, scores = draft_scores(decoder, lens, hidden, proxies, weight)
    assert ids.shape == scores.shape == (2, 9, LISTED)
    own = lens.proxies(hidden)
    for t in range(1, 9):
        every = lens.scores(own[:, t], torch.zeros(2, dtype=torch.bool))
        every = every + weight * decoder.log_probs(hidden[:, t - 1])
        wanted = every.gather(1, ids[:, t])
        torch.testing.assert_close(
            wanted - wanted[:, :1], scores[:, t] - scores[:, t, :1], rtol=1e-3, atol=1e-3 * float(own[:, t].abs().max())
        )
        if decoder.tied_scale is not None or not weight:
            assert ids[:, t, 0].equal(every.argmax(-1))


def test_a_head_is_tied_only_where_it_is_the_embedding_matrix():
    tied = {family: inverter(family).decoder.tied_scale for family in FAMILIES}
    assert tied["gpt2"] == pytest.approx(1.0)
    assert tied["gemma"] == pytest.approx(64**0.5, rel=1e-2)  # which scales what it embeds
    assert tied["llama"] is None
    for family in FAMILIES:
        decoder = inverter(family).decoder
        hidden = decoder.capture(torch.tensor(texts(5)))[0]
        ids = torch.randint(VOCAB, (5, 7), generator=torch.Generator().manual_seed(0))
        one, other = decoder.log_probs(hidden).gather(1, ids), decoder.logits_of(hidden, ids)
        torch.testing.assert_close(one - one[:, :1], other - other[:, :1], rtol=1e-4, atol=1e-4)
