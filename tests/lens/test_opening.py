"""How texts begin is known: the state of the token that the tokenizer puts before every text."""

from __future__ import annotations

import torch

from invert_fast import Inverter
from invert_fast.lens.choose import choose_lens
from invert_fast.lens.linear import LinearLens
from invert_fast.lens.opening import begin_as_usual
from invert_fast.lens.prior import draft_lists
from invert_fast.model.decoder import Decoder
from invert_fast.model.reading import Reading

from ..families import VOCAB, Tokenizer, make, texts

BOS = 1  # what that tokenizer begins with


def lists(count: int, width: int = 5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    ids = torch.arange(10, 10 + width).expand(count, width).clone()
    return ids, -torch.arange(width).float().expand(count, width).clone(), torch.full((count,), 0.5)


def test_a_usual_beginning_leads_its_list_and_no_other_row_is_touched():
    decoder = Decoder(make("llama"), Tokenizer(VOCAB), layer=1)
    states = decoder.states(torch.tensor([[BOS], [7]]))[:, 0]
    noisy = states[0] + 0.1 * states[0].norm() / len(states[0]) ** 0.5 * torch.randn(len(states[0]))
    first = torch.stack([states[0], states[1], noisy])
    ids, scores, error = lists(3)
    ids[2, 3] = BOS  # there already, further down
    begin_as_usual(decoder, first, ids, scores, error)
    assert ids.tolist() == [[1, 10, 11, 12, 13], [10, 11, 12, 13, 14], [1, 10, 11, 12, 14]]
    assert scores[0].tolist() == [20.0, 0.0, -1.0, -2.0, -3.0]
    assert scores[2].tolist() == [20.0, 0.0, -1.0, -2.0, -4.0]
    assert scores[1].tolist() == [0.0, -1.0, -2.0, -3.0, -4.0]
    assert error.tolist() == [torch.tensor(1e-4).item(), 0.5, torch.tensor(1e-4).item()]


def test_nothing_is_known_of_a_model_without_a_tokenizer_nor_behind_a_prefix():
    for decoder in (
        Decoder(make("llama"), layer=1),
        Decoder(make("llama"), Tokenizer(VOCAB), layer=1).read_as(Reading(prefix=(BOS,))),
    ):
        state = decoder.states(torch.tensor([[BOS]]))[:, 0]
        ids, scores, error = lists(1)
        begin_as_usual(decoder, state, ids, scores, error)
        assert ids[0, 0] == 10
        assert error[0] == 0.5


def test_drafts_begin_so_whatever_the_lens_says(monkeypatch):
    inv = Inverter(make("llama"), Tokenizer(VOCAB), layer=1)
    truth = [[BOS, *text] for text in texts(7, 7)] + texts(8)
    states = torch.stack([one.hidden for one in inv.capture(truth)])
    lens = choose_lens(inv.decoder, inv.vocabulary)
    whole = LinearLens.lists
    monkeypatch.setattr(LinearLens, "lists", lambda self, proxies: tuple(t.roll(1, -1) for t in whole(self, proxies)))
    drafted = draft_lists(inv.decoder, lens, states).ids[:, 0, 0].tolist()
    assert drafted[:2] == [BOS, BOS]
    assert drafted[2] != truth[2][0]
