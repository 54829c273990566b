"""Draft, verify, repair: what is verified at once, that lanes do not wait for each other, that no lens can do harm."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from invert_fast import Inverter
from invert_fast.cli import demo
from invert_fast.engine.engine import _Stream
from invert_fast.lens import choose_lens
from invert_fast.strategies import Chain, Exhaustive, Speculative, speculative

from ..families import VOCAB, exact, inverter, texts


class Drafts:
    """A lens that drafts what it is told, as sure of each token as it is told, and scores like another one."""

    kind = "told"

    def __init__(self, inv, truth: list[list[int]], drafts: list[list[int]], leads: list[list[float]]):
        self.lens = choose_lens(inv.decoder, inv.vocabulary, "linear")
        self.accuracy, self.repair = self.lens.accuracy, replace(self.lens.repair, sureness=1.0, second_look=0.0)
        self.first = [self.lens.proxies(inv.decoder.capture(torch.tensor([ids])))[0, 0] for ids in truth]
        self.drafts, self.leads = drafts, leads

    def __getattr__(self, name):
        return getattr(self.lens, name)

    def best(self, proxies):
        """Rows are told apart by their first proxy."""
        ids, leads = self.lens.best(proxies)
        for row, proxy in enumerate(proxies[:, 0]):
            text = next(i for i, first in enumerate(self.first) if torch.allclose(first, proxy, rtol=1e-3, atol=1e-3))
            told, sure = self.drafts[text], self.leads[text]
            ids[row, : len(told)], leads[row, : len(sure)] = torch.tensor(told), torch.tensor(sure)
        return ids, leads


@pytest.fixture
def told(monkeypatch):
    """`told(inverter, truth, drafts, leads)`: from now on the strategy drafts these for these texts, quite sure of it
    unless leads say otherwise."""

    def tell(inv, truth, drafts, leads=None):
        leads = leads or [[1000.0] * len(ids) for ids in truth]
        lens = Drafts(inv, truth, drafts, leads)
        monkeypatch.setattr(speculative, "choose_lens", lambda *_: lens)

    return tell


@pytest.fixture
def runs(monkeypatch) -> list[tuple[int, int]]:
    """(start, tokens) of every run that is verified, a lane each."""
    seen: list[tuple[int, int]] = []
    verify = _Stream._verify_run

    def watched(self, run):
        seen.extend(zip(self.lanes.length[run.slots].tolist(), run.counts.tolist(), strict=True))
        verify(self, run)

    monkeypatch.setattr(_Stream, "_verify_run", watched)
    return seen


# ---- what goes through a call together


@given(
    st.lists(st.tuples(st.integers(1, 1000), st.integers(0, 1000)), min_size=1, max_size=300),
    st.booleans(),
    st.sampled_from([8.0, 24.0, 96.0]),
)
def test_groups_hold_every_row_once_and_are_padded_little(rows, more, call_tokens):
    counts = torch.tensor([count for count, _ in rows])
    left = counts + torch.tensor([extra for _, extra in rows]) if more else None
    groups = list(speculative._alike(counts, call_tokens, left))
    assert sorted(torch.cat(groups).tolist()) == list(range(len(rows)))
    for group in groups:
        longest, whole = int(counts[group].max()), int(counts[group].max()) * len(group)
        there = counts[group] if left is None else left[group]
        padding = int((longest - there).clamp_min(0).sum())
        assert padding <= max(whole / 8, call_tokens)
    firsts = [int(counts[group].max()) for group in groups]
    assert firsts == sorted(firsts, reverse=True)


def test_texts_of_one_length_go_through_one_call(told, runs):
    truth = texts(9) * 5
    inv = inverter("llama")
    told(inv, truth[:1], truth[:1])
    found = inv.invert(inv.capture(truth))
    assert exact(found, truth)
    assert runs[:5] == [(0, 9)] * 5


# ---- chunks


def test_a_right_draft_costs_one_token_a_token(told, runs):
    truth = texts(20, 7, 1)
    inv = inverter("gpt2")
    told(inv, truth, truth)
    found = inv.invert(inv.capture(truth))
    assert exact(found, truth)
    assert sorted(runs) == [(0, 1), (0, 7), (0, 20)]


@pytest.mark.parametrize("doubtful", [0, 1, 30, 58])
def test_a_chunk_ends_with_the_first_doubtful_token(told, runs, doubtful):
    """With sixteen texts a further round is cheap."""
    truth = texts(60) * 16
    inv = inverter("gpt2")
    leads = [1000.0] * 60
    leads[doubtful] = 0.0
    told(inv, truth[:1], truth[:1], [leads])
    assert exact(inv.invert(inv.capture(truth)), truth)
    assert runs == [(0, doubtful + 1)] * 16 + [(doubtful + 1, 59 - doubtful)] * 16


def test_a_doubtful_token_of_a_text_alone_is_not_worth_a_round(told, runs):
    (truth,) = texts(60)
    leads = [1000.0] * 60
    leads[30] = 0.0
    inv = inverter("gpt2")
    told(inv, [truth], [truth], [leads])
    assert exact(inv.invert(inv.capture([truth])), [truth])
    assert runs == [(0, 60)]


def test_a_lens_that_is_often_wrong_and_sure_is_soon_believed_less(told, runs, monkeypatch):
    """Every tenth token is wrong and nothing says so: chunks shorten from what was seen."""
    monkeypatch.setattr(speculative._Proposer, "observe", lambda *_: None)
    (truth,) = texts(120)
    wrong = [(i + 1) % VOCAB if at % 10 == 9 else i for at, i in enumerate(truth)]
    inv = inverter("gpt2")
    told(inv, [truth], [wrong])
    (found,) = inv.invert(inv.capture([truth]))
    assert exact([found], [truth])
    assert runs[0] == (0, 120)
    last = [count for start, count in runs if start > 80]
    assert max(last) < 40


# ---- lanes and each other


def test_wrong_drafts_in_one_lane_do_not_hold_back_others(told):
    truth = texts(24, 23, 22)
    inv = inverter("llama")
    told(inv, truth, [truth[0], [(i + 7) % VOCAB for i in truth[1]], truth[2]])
    found = dict(inv.invert_iter(enumerate(inv.capture(truth)), Speculative(max_candidates=None), lengths=[24, 23, 22]))
    order = list(dict(inv.invert_iter(enumerate(inv.capture(truth)), Speculative(), lengths=[24, 23, 22])))
    assert exact([found[i] for i in range(3)], truth)
    assert found[0].cost.forward_tokens <= 26, "a token a token, and the padding of a shared call"
    assert found[2].cost.forward_tokens <= 26
    assert order[-1] == 1


@pytest.mark.parametrize("family", ["gpt2", "qwen3"])
@pytest.mark.parametrize("lead", [0.0, 1000.0])
def test_wholly_wrong_drafts_end_exact_however_sure_they_are(told, family, lead):
    truth = texts(12, 5, 1)
    inv = inverter(family)
    drafts = [[(token + 3) % VOCAB for token in ids] for ids in truth]
    told(inv, truth, drafts, [[lead] * len(ids) for ids in truth])
    found = inv.invert(inv.capture(truth), Chain(Speculative(), Exhaustive()))
    assert exact(found, truth)


def test_nan_leads_are_survived(told):
    truth = texts(12, 5)
    inv = inverter("gpt2")
    told(inv, truth, truth, [[float("nan")] * len(ids) for ids in truth])
    assert exact(inv.invert(inv.capture(truth)), truth)


# ---- what a run shows behind its first mismatch


def test_all_wrong_drafts_of_a_run_are_put_right_after_it(told, runs):
    """Four wrong tokens, of which nothing says so, cost one more run, not four."""
    inv = Inverter.from_pretrained("bundled", device="cpu")
    truth = inv.encode(" ".join(demo.sentences()))[:200]
    wrong = list(truth)
    for at in (50, 90, 130, 170):
        wrong[at] = truth[at - 7]
    told(inv, [truth], [wrong])
    (found,) = inv.invert(inv.capture([truth]), Chain(Speculative(), Exhaustive()))
    assert exact([found], [truth])
    assert found.certified
    assert runs[:2] == [(0, 200), (50, 150)]
    assert found.cost.forward_tokens <= 200 + 150 + 8


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_drafts_that_are_thought_over_in_vain_do_no_harm(told, family):
    """Half of all tokens wrong: what is behind a mismatch says little, and may be put wrong."""
    truth = texts(30, 25, 8)
    drafts = [[(token + 3 * (at % 2)) % VOCAB for at, token in enumerate(ids)] for ids in truth]
    inv = inverter(family)
    told(inv, truth, drafts)
    found = inv.invert(inv.capture(truth), Chain(Speculative(), Exhaustive()))
    assert exact(found, truth)
    assert all(r.certified for r in found)
