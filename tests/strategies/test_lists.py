"""Short lists of candidates, which large vocabularies have, on small ones: the same texts, whatever the lists miss."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch

from invert_fast import Chain, Exhaustive, Inverter
from invert_fast.engine.attempts import Attempts
from invert_fast.engine.protocol import Context
from invert_fast.lens import choose_lens
from invert_fast.lens.linear import LinearLens
from invert_fast.lens.prior import DraftPrior, draft_lists, weighed_lists
from invert_fast.lens.prior_fit import _normaliser, _parted
from invert_fast.model.lanes import Lanes
from invert_fast.ops.best_two import LISTED
from invert_fast.strategies.candidates import Candidates
from invert_fast.strategies.lens_order import LensOrder
from invert_fast.strategies.prior import PriorOrder
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


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_what_the_model_finds_likely_is_in_lists_that_a_lens_cannot_read(family):
    """The head is not the embedding matrix: lists are searched for without the prior, and it names some itself."""
    inv = Inverter(build(family))
    decoder, lens = inv.decoder, choose_lens(inv.decoder, inv.vocabulary)
    assert decoder.tied_scale is None
    hidden = decoder.capture(torch.tensor(texts(9, 9)))
    own, found = weighed_lists(decoder, lens, hidden, 0.0, hidden), weighed_lists(decoder, lens, hidden, 1.0, hidden)
    likely = decoder.log_probs(hidden[:, :-1]).topk(16, -1).indices
    ids = found.ids[:, 1:]
    candidate = inv.vocabulary.allowed[likely]
    assert ((ids[..., None] == likely[:, :, None]).any(2) == candidate).all()
    assert candidate.float().mean() > 0.9
    assert (ids[..., None] == own.ids[:, 1:, None, : LISTED - 16]).any(2).all(), "and the lens's best stay"
    assert all(len(set(row)) == LISTED for row in ids.flatten(0, 1).tolist())
    assert found.ids[:, 0].equal(own.ids[:, 0])


def test_a_text_of_one_token_has_a_list_too():
    inv, truth = inverter("llama"), texts(1)
    assert exact(inv.invert(inv.capture(truth)), truth)


@pytest.mark.parametrize("family", ["gpt2", "gemma"])  # whose head is the embedding matrix, and a multiple of it
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_one_product_gives_the_scores_that_three_give(family, dtype):
    inv = Inverter(build(family).to(dtype))
    decoder, lens, slots = inv.decoder, choose_lens(inv.decoder, inv.vocabulary), torch.tensor([0, 1])
    assert decoder.tied_scale is not None
    hidden = decoder.capture(torch.tensor(texts(9, 9))).float()
    lanes = Lanes(decoder, 2, 9)
    lanes.load(slots, [0, 1], [*hidden])
    attempts = Attempts(2, VOCAB, decoder.width, decoder.device)
    candidates = Candidates(Context(decoder, inv.vocabulary, inv.calibrate(), lanes, attempts), lens)
    candidates.draft(slots, hidden)
    slots, position, wrong = torch.tensor([0, 1, 1]), torch.tensor([0, 3, 8]), torch.tensor([7, 8, 9])
    before, other = candidates._before(slots, position), hidden[0, :3]
    row, prior, change = candidates._tables(slots, position, before, other, wrong)
    theirs = decoder.log_probs(before)
    exactly = {torch.float32: 1e-4, torch.bfloat16: 2e-2}[dtype]  # the model's own logits are as exact as it is
    alike = inv.vocabulary.allowed
    torch.testing.assert_close(row[:, alike], lens.scores(candidates.proxies[slots, position], position == 0)[:, alike])
    torch.testing.assert_close(
        change[:, alike], lens.change_scores(hidden[slots, position], other, wrong)[:, alike], rtol=1e-4, atol=1e-3
    )
    apart = (prior - theirs)[:, alike]
    assert (apart - apart.mean(-1, keepdim=True)).abs().max() <= exactly * theirs[:, alike].abs().max()


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
    found = weighed_lists(decoder, lens, hidden, weight, hidden)
    ids, scores = found.ids, found.scores
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


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma"])
def test_rows_that_surprise_the_model_are_drafted_with_less_of_the_prior(family):
    """Each row as its own weight has it: half of the rows on either side of the edge, tied or not."""
    inv = Inverter(build(family))
    decoder, lens = inv.decoder, choose_lens(inv.decoder, inv.vocabulary)
    hidden = decoder.capture(torch.tensor(texts(40, 40)))
    first, other = (weighed_lists(decoder, lens, hidden, weight, hidden) for weight in (2.0, 0.5))
    asked = DraftPrior(_normaliser(decoder, hidden))
    surprise = asked.surprise(decoder, hidden, first.ids[..., 0])
    edge = float(surprise.median())
    lens.prior = DraftPrior(asked.normaliser, (2.0, 0.5), (edge,), (0.1, 0.2))
    found = draft_lists(decoder, lens, hidden)
    less = (surprise > edge)[..., None]
    assert 0 < int(less.sum()) < less.numel()
    wanted = torch.where(less, other.scores[:, 1:], first.scores[:, 1:])
    torch.testing.assert_close(found.scores[:, 1:], wanted, rtol=1e-3, atol=1e-4 * float(found.proxies.abs().max()))
    sureness = torch.where(less[..., 0], 0.2, 0.1)
    leads = found.scores[:, 1:, 0] - found.scores[:, 1:, 1]
    torch.testing.assert_close(found.error[:, 1:], torch.sigmoid(-sureness * leads).clamp_min(1e-4))


def test_weights_of_the_prior_part_where_that_puts_most_tokens_right():
    """Three kinds of tokens, told apart by surprise, each right under one weight alone."""
    surprise = torch.linspace(0, 12, 1200)
    kind = torch.bucketize(surprise, torch.tensor([4.0, 8.0]))
    right = torch.stack([kind == 0, kind == 1, kind < 0, kind == 2])
    count, edges, chosen = _parted(right, surprise)
    assert count == 1200
    assert chosen == (0, 1, 3)
    assert edges == pytest.approx((4.0, 8.0), abs=0.1)
    same = _parted(torch.ones(3, 1200, dtype=torch.bool), surprise)
    assert same == (1200, (), (0,))


def test_a_ridge_regression_tells_the_normaliser_of_logits():
    decoder = inverter("gpt2").decoder
    hidden = decoder.capture(torch.tensor(texts(60, 60, 60)))
    found = _normaliser(decoder, hidden)
    rows = decoder.head_input(hidden.flatten(0, 1))
    whole = decoder.log_normaliser(rows)
    assert float((rows @ found[:-1] + found[-1] - whole).square().mean()) < 0.5 * float(whole.var())
    torch.testing.assert_close(whole, decoder.model.lm_head(rows).logsumexp(-1))


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


def test_what_repairs_and_gradients_leave_is_tried_in_the_orders_of_lens_and_prior(monkeypatch):
    """A first strategy that gives up, as if drafts and steps had found nothing: before all of a large vocabulary."""
    monkeypatch.setattr(import_module("invert_fast.strategies.lens_order"), "MANY_TOKENS", 1)
    inv, truth = inverter("llama"), texts(*LENGTHS)
    states = inv.capture(truth)
    found = inv.invert(states, Chain(PriorOrder(max_candidates=0), LensOrder(part=1.0, block=4), Exhaustive()))
    assert exact(found, truth)
    tried = sum(r.cost.forward_tokens for r in found) / sum(LENGTHS)
    assert tried < VOCAB / 4, "no better than an order that knows nothing"
    assert not any(r.cost.exhaustive for r in found)
    few = inv.invert(states, Chain(PriorOrder(max_candidates=0), LensOrder(part=0.0), Exhaustive()))
    assert exact(few, truth)
    assert all(r.cost.exhaustive for r in few), "what the part leaves is for the strategy after it"


def test_of_a_large_vocabulary_eight_times_as_many_are_tried_before_the_next_strategy(monkeypatch):
    whole = LinearLens.lists

    def misleading(self, proxies):
        ids, scores = whole(self, proxies)
        return ids.flip(-1), scores

    monkeypatch.setattr(LinearLens, "lists", misleading)
    inv, (row,) = inverter("llama"), texts(12)
    for most, enough in ((1, False), (-(-VOCAB // 8), True)):
        (found,) = inv.invert(inv.capture([row]), Chain(Speculative(max_candidates=most), Exhaustive(block=8)))
        assert exact([found], [row])
        assert (found.cost.exhaustive == 0) == enough
