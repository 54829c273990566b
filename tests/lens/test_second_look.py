"""A second look at doubtful tokens: the lens's score with the model's own prior."""

from __future__ import annotations

import pytest
import torch

from invert_fast import Inverter
from invert_fast.cli import demo
from invert_fast.lens import choose_lens
from invert_fast.lens.second_look import doubtful, look_again

from ..families import VOCAB, build, inverter, texts
from ..limits import close

pytestmark = pytest.mark.numeric


def test_a_second_look_adds_the_prior_of_the_row_before():
    """Against the formula: log p(state | token) + log(0.7 p(token | prefix) + 0.3 / V)."""
    inv = inverter("llama")
    lens = choose_lens(inv.decoder, inv.vocabulary, "linear")
    hidden = inv.decoder.capture(torch.tensor(texts(12, 12, 12)))
    head = inv.decoder.model.get_output_embeddings().weight
    proxies = lens.proxies(hidden)
    text, position = torch.tensor([0, 2, 1]), torch.tensor([1, 11, 4])
    ids, leads = look_again(inv.decoder, lens, hidden, proxies, text, position)
    for b, t, token, lead in zip(text, position, ids, leads, strict=True):
        likelihood = lens.scores(proxies[b, t][None], torch.tensor([False]))[0]
        prior = inv.decoder.log_probs(hidden[b, t - 1]).exp()
        best = (likelihood + (0.7 * prior + 0.3 / VOCAB).log()).topk(2)
        assert token == best.indices[0]
        scores = (
            proxies[b, t].abs() @ torch.cat([*inv.vocabulary.embedding.blocks()]).abs().T
            + lens.parts["rest"].bias.abs()
        )
        logits = hidden[b, t - 1].abs() @ head.abs().T
        scale = scores[best.indices].sum() + 2 * logits.max()  # a log-probability is a logit less what all add up to
        close(lead, best.values[0] - best.values[1], scale=scale, terms=2 * head.shape[1] + 16)


def test_the_first_token_has_no_prior_and_sure_ones_need_none():
    error = torch.tensor([[0.9, 0.001, 0.5], [0.9, 0.02, float("nan")]])
    text, position = doubtful(error)
    assert list(zip(text.tolist(), position.tolist(), strict=True)) == [(0, 2), (1, 1)]


@pytest.mark.slow
def test_a_second_look_puts_wrong_drafts_right_on_real_text():
    inv = Inverter.from_pretrained("bundled", device="cpu")
    lens = choose_lens(inv.decoder, inv.vocabulary, "linear")
    assert lens.repair.second_look > 0, "measured to help"
    ids = torch.tensor([inv.encode(" ".join(demo.sentences()))[:600]])
    hidden = inv.decoder.capture(ids)
    proxies = lens.proxies(hidden)
    drafted, leads = lens.best(proxies)
    rows = doubtful(lens.repair.error(leads))
    looked = drafted.clone()
    looked[rows], _ = look_again(inv.decoder, lens, hidden, proxies, *rows)
    assert 0 < (looked != ids).sum() < (drafted != ids).sum()


def test_states_of_inner_layers_get_no_second_look():
    inv = Inverter(build("gpt2"), layer=1)
    assert choose_lens(inv.decoder, inv.vocabulary, "linear").repair.second_look == 0
