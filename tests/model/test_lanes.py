"""Lanes at different positions answer as the full forward pass does, and the prefix is shared, never copied."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from invert_fast.model.decoder import Decoder
from invert_fast.model.lanes import Lanes
from invert_fast.model.prefix import PrefixCall
from invert_fast.strategies.speculative import _CALL_MOST

from ..families import BLOCKS, FAMILIES, HEADS, MORE, POSITIONS, VOCAB, WIDTH, WINDOW, inverter, make, texts

all_families = pytest.mark.parametrize("family", [*FAMILIES, *MORE])
SLOTS, LENGTH = 4, 24
STANDS = torch.tensor([3, 0, 17, 9])  # where the lanes stand
ids = torch.tensor(texts(*[LENGTH] * SLOTS))
everyone = torch.arange(SLOTS)


def decoder_of(family: str, layer: int | str = -1) -> Decoder:
    return inverter(family, layer).decoder


def lanes_at(decoder: Decoder, stands: Tensor, max_len: int = LENGTH) -> Lanes:
    """Lanes that have committed the first tokens of `ids`, by one ragged draft."""
    lanes = Lanes(decoder, SLOTS, max_len)
    lanes.load(everyone, list(range(SLOTS)), list(decoder.capture(ids)))
    if stands.any():
        lanes.draft(everyone, ids)
        lanes.commit(everyone, ids, stands, everyone)
    return lanes


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def next_ids(slots: Tensor, stands: Tensor, count: int) -> Tensor:
    return ids[slots[:, None], stands[slots][:, None] + torch.arange(count)]


def recorded(lanes: Lanes, monkeypatch: pytest.MonkeyPatch) -> list[PrefixCall]:
    """Every PrefixCall that these lanes make from now on."""
    calls, run = [], lanes.decoder.run
    monkeypatch.setattr(
        lanes.decoder, "run", lambda e, p, call, compute: (calls.append(call), run(e, p, call, compute))[1]
    )
    return calls


# ---- equality with the full forward pass


@all_families
@pytest.mark.parametrize("layer", [-1, "block:1"])
def test_a_draft_continues_each_lane_from_where_it_stands(family, layer):
    decoder = decoder_of(family, layer)
    lanes, full = lanes_at(decoder, STANDS), decoder.capture(ids)
    found = lanes.draft(everyone, next_ids(everyone, STANDS, 7))
    for slot, stand in enumerate(STANDS.tolist()):
        close(found[slot], full[slot, stand : stand + 7])


@all_families
@pytest.mark.parametrize("layer", [-1, "block:1"])
def test_a_fan_out_gives_each_candidate_the_state_of_its_own_text(family, layer):
    decoder, N = decoder_of(family, layer), 5
    lanes = lanes_at(decoder, STANDS)
    candidates = torch.tensor(texts(*[N] * SLOTS, seed=1))
    found = lanes.fan_out(everyone, candidates)
    for slot, stand in enumerate(STANDS.tolist()):
        alone = torch.cat([ids[slot, :stand].expand(N, -1), candidates[slot][:, None]], 1)
        close(found[slot], decoder.capture(alone)[:, -1])


@all_families
def test_the_kv_of_the_winner_of_a_fan_out_is_used_again(family):
    decoder = decoder_of(family)
    lanes, full = lanes_at(decoder, STANDS), decoder.capture(ids)
    for step in range(4):
        true = next_ids(everyone, STANDS + step, 1)
        candidates = torch.cat([torch.full((SLOTS, 3), 5), true, torch.full((SLOTS, 2), 6)], 1)
        lanes.fan_out(everyone, candidates)
        lanes.commit(everyone, true, torch.ones(SLOTS).long(), everyone, chosen=torch.full((SLOTS,), 3))
    assert torch.equal(lanes.length, STANDS + 4)
    found = lanes.draft(everyone, next_ids(everyone, STANDS + 4, 3))
    for slot, stand in enumerate((STANDS + 4).tolist()):
        close(found[slot], full[slot, stand : stand + 3])
        assert torch.equal(lanes.ids[slot, :stand], ids[slot, :stand])


@all_families
def test_texts_longer_than_the_window_token_by_token(family):
    decoder = decoder_of(family)
    lanes, full = lanes_at(decoder, torch.zeros(SLOTS).long()), decoder.capture(ids)
    assert LENGTH > 2 * WINDOW
    for t in range(LENGTH):
        close(lanes.draft(everyone, ids[:, t : t + 1])[:, 0], full[:, t])
        lanes.commit(everyone, ids[:, t : t + 1], torch.ones(SLOTS).long(), everyone)


@pytest.mark.parametrize("slots", [[2], [0, 3], [3, 0], [2, 1, 3], [1, 0, 3, 2], [3, 2, 1, 0], [2, 0, 3, 1]], ids=str)
@pytest.mark.parametrize("question", ["draft", "fan_out"])
def test_any_subset_of_lanes_in_any_order(slots, question):
    decoder, slots = decoder_of("llama"), torch.tensor(slots)
    lanes, full = lanes_at(decoder, STANDS), decoder.capture(ids)
    true = next_ids(slots, STANDS, 1)
    found = lanes.draft(slots, true) if question == "draft" else lanes.fan_out(slots, true)
    close(found[:, 0], full[slots, STANDS[slots]])
    rows = torch.arange(len(slots))
    lanes.commit(slots, true, torch.ones_like(slots), rows, None if question == "draft" else torch.zeros_like(slots))
    stands = STANDS.clone()
    stands[slots] += 1
    close(lanes.draft(everyone, next_ids(everyone, stands, 2))[:, 1], full[everyone, stands + 1])


def test_some_lanes_of_a_call_may_commit_and_others_not():
    decoder = decoder_of("qwen3")
    lanes, full = lanes_at(decoder, STANDS), decoder.capture(ids)
    counts = torch.tensor([2, 0, 1, 4])
    draft = next_ids(everyone, STANDS, 4)
    lanes.draft(everyone, draft)
    some = torch.tensor([3, 0])  # rows 3 and 0 of that call
    lanes.commit(some, draft[some], counts[some], some)
    stands = STANDS.clone()
    stands[some] += counts[some]
    assert torch.equal(lanes.length, stands)
    close(
        lanes.draft(everyone, next_ids(everyone, stands, 2)), full[everyone[:, None], stands[:, None] + torch.arange(2)]
    )


def test_padding_past_the_last_position_harms_nobody():
    decoder = decoder_of("gpt2")
    long = torch.tensor(texts(POSITIONS, POSITIONS))
    full, lanes = decoder.capture(long), Lanes(decoder, 2, POSITIONS)
    lanes.target_length[:] = POSITIONS
    slots = torch.arange(2)
    lanes.draft(slots, long[:, :-1])
    lanes.commit(slots, long[:, :-1], torch.tensor([POSITIONS - 1, POSITIONS - 6]), slots)
    padded = torch.zeros(2, 6).long()
    padded[0, 0], padded[1] = long[0, -1], long[1, -6:]
    found = lanes.draft(slots, padded)
    close(found[0, 0], full[0, -1])
    close(found[1], full[1, -6:])


def test_embeddings_need_no_prefix():
    decoder = decoder_of("gpt2", "embeddings")
    lanes, full = lanes_at(decoder, STANDS), decoder.capture(ids)
    close(lanes.draft(everyone, next_ids(everyone, STANDS, 1))[:, 0], full[everyone, STANDS])
    assert lanes.keys is None


def test_gradients_of_a_proxy_are_those_of_the_full_forward_pass():
    decoder = decoder_of("llama")
    lanes, weights = lanes_at(decoder, STANDS), torch.randn(WIDTH, generator=torch.Generator().manual_seed(0))
    proxy = decoder.embed(torch.tensor(texts(*[2] * SLOTS))).clone().requires_grad_()
    (found,) = torch.autograd.grad((lanes.fan_out_of(everyone, proxy) * weights).sum(), proxy)
    model = make("llama")
    for slot, stand in enumerate(STANDS.tolist()):
        for n in range(2):
            leaf = proxy[slot, n].detach().clone().requires_grad_()
            embeds = torch.cat([decoder.embed(ids[slot, :stand]), leaf[None]])[None]
            state = model.base_model(inputs_embeds=embeds).last_hidden_state[0, -1]
            (expected,) = torch.autograd.grad((state * weights).sum(), leaf)
            torch.testing.assert_close(found[slot, n], expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())


def test_without_a_gradient_asked_for_none_is_kept():
    decoder = decoder_of("llama")
    lanes = lanes_at(decoder, STANDS)
    assert not lanes.fan_out(everyone, ids[:, :3]).requires_grad
    lanes.fan_out_of(everyone, decoder.embed(ids[:, :1]).requires_grad_())
    lanes.commit(everyone, ids[:, :1], torch.ones(SLOTS).long(), everyone, torch.zeros(SLOTS).long())
    assert not any(k.requires_grad for k in lanes.keys)


# ---- the prefix is shared


class Largest(TorchDispatchMode):
    """The most bytes that any one tensor made meanwhile has."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, Tensor):
                self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
        return out


def test_a_fan_out_never_copies_the_prefix_per_candidate(monkeypatch):
    decoder, N, max_len = decoder_of("llama"), 64, 100
    text = torch.tensor(texts(max_len))
    lanes = Lanes(decoder, 1, max_len)
    lanes.target_length[:] = max_len
    one = torch.zeros(1).long()
    lanes.draft(one, text)
    lanes.commit(one, text, torch.tensor([max_len - 1]), one)
    calls = recorded(lanes, monkeypatch)
    sizes = {}
    for count in (N, 2 * N):
        with Largest() as largest:
            lanes.fan_out(one, torch.arange(count)[None])
        prefix = max_len * (WIDTH // HEADS) * 2 * 4  # bytes of one layer's keys: 2 heads, fp32
        assert largest.bytes < count * prefix / 2
        sizes[count] = [k.untyped_storage().nbytes() for k in calls[-1].keys]
    assert sizes[N] == sizes[2 * N]
    for call in calls:
        for seen, stored in zip([*call.keys, *call.values], [*lanes.keys, *lanes.values], strict=True):
            assert seen.untyped_storage().data_ptr() == stored.untyped_storage().data_ptr()


def test_storage_is_made_once_and_only_when_a_lane_goes_on():
    decoder = decoder_of("llama")
    lanes = lanes_at(decoder, torch.zeros(SLOTS).long())
    lanes.draft(everyone, ids)
    lanes.commit(everyone, ids, torch.full((SLOTS,), LENGTH), everyone)
    assert lanes.keys is None, "texts that are right from end to end need none"
    lanes = lanes_at(decoder, STANDS)
    stored = [t.data_ptr() for t in [*lanes.keys, *lanes.values]]
    assert len(lanes.keys) == BLOCKS
    lanes.draft(everyone, next_ids(everyone, STANDS, 2))
    lanes.commit(everyone, next_ids(everyone, STANDS, 2), torch.full((SLOTS,), 2), everyone)
    assert [t.data_ptr() for t in [*lanes.keys, *lanes.values]] == stored


# ---- bookkeeping


def test_lanes_report_who_is_active_finished_and_idle():
    decoder = decoder_of("gpt2")
    lanes = Lanes(decoder, 3, LENGTH)
    assert lanes.idle().tolist() == [0, 1, 2]
    lanes.load(torch.tensor([2, 0]), [7, 8], [torch.zeros(2, WIDTH), torch.zeros(0, WIDTH)])
    assert (lanes.idle().tolist(), lanes.active().tolist(), lanes.finished().tolist()) == ([1], [2], [0])
    assert lanes.text.tolist() == [8, -1, 7]
    two = torch.tensor([2])
    lanes.draft(two, ids[:1, :2])
    lanes.commit(two, ids[:1, :2], torch.tensor([2]), torch.tensor([0]))
    assert (lanes.active().tolist(), lanes.finished().tolist()) == ([], [0, 2])
    lanes.release(lanes.finished())
    assert lanes.idle().tolist() == [0, 1, 2]


def test_forward_tokens_count_every_token_computed():
    decoder = decoder_of("gpt2")
    lanes = lanes_at(decoder, STANDS)
    assert lanes.forward_tokens.tolist() == [LENGTH] * SLOTS
    lanes.fan_out(torch.tensor([0, 2]), torch.zeros(2, 5).long())
    lanes.draft(torch.tensor([1]), ids[1:2, :3])
    assert lanes.forward_tokens.tolist() == [LENGTH + 5, LENGTH + 3, LENGTH + 5, LENGTH]
    lanes.load(torch.tensor([2]), [9], [torch.zeros(1, WIDTH)])
    assert lanes.forward_tokens[2] == 0


def test_a_lane_that_takes_the_next_text_sees_nothing_of_the_one_before():
    decoder = decoder_of("llama")
    lanes, slot = lanes_at(decoder, STANDS), torch.tensor([2])
    lanes.release(slot)
    short = torch.tensor(texts(6, seed=3))
    states = decoder.capture(short)
    lanes.load(slot, [9], list(states))
    close(lanes.target(slot), states[:, 0])
    lanes.draft(slot, short)
    lanes.commit(slot, short, torch.tensor([2]), torch.tensor([0]))
    close(lanes.draft(slot, short[:, 2:]), states[:, 2:])
    close(lanes.draft(everyone[:2], next_ids(everyone[:2], STANDS, 1))[:, 0], decoder.capture(ids)[[0, 1], STANDS[:2]])


def test_commit_needs_a_call_before_it():
    lanes, one = Lanes(decoder_of("gpt2"), 1, 4), torch.zeros(1).long()
    with pytest.raises(RuntimeError, match="draft"):
        lanes.commit(one, one[:, None], one + 1, one)


def test_more_texts_than_lanes_and_fewer_forward_tokens_than_padding():
    """In-flight refill: 3 lanes, 11 texts of very different lengths; no lane waits for the longest, and none is padded
    by more than a call of its own would have cost."""
    inv, truth = inverter("gemma"), texts(40, 1, 2, 3, 0, 5, 1, 33, 2, 0, 4)
    found = inv.invert(inv.capture(truth), batch_size=3)
    assert [r.token_ids.tolist() for r in found] == truth
    assert all(r.certified for r in found)
    drafted_right = [r for r in found if not r.rank.any()]
    assert len(drafted_right) > len(found) / 2
    assert all(len(r.token_ids) <= r.cost.forward_tokens <= _CALL_MOST + 2 * len(r.token_ids) for r in drafted_right)
    assert sum(r.cost.forward_tokens for r in found) < len(truth) * 40
    assert all(r.cost.seconds > 0 for r in found if len(r.token_ids))
    assert VOCAB > 40
