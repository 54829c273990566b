"""What people have in memory goes in: batches, masks, arrays and lists, in the order of their texts."""

from __future__ import annotations

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from invert_fast import InputError, Inverter, States
from invert_fast.intake.texts import texts_of
from invert_fast.model.layer import Layer
from invert_fast.storage.masks import spans

from ..families import BLOCKS, WIDTH, exact, inverter, make, texts

LAST = Layer(-1, BLOCKS)
TRUTH = texts(5, 2, 7)


@pytest.fixture(scope="module")
def inv() -> Inverter:
    return inverter("llama")


@pytest.fixture(scope="module")
def rows(inv) -> list[torch.Tensor]:
    return [s.hidden for s in inv.capture(TRUTH)]


def padded(
    rows: list[torch.Tensor], left: bool = False, fill: float = float("nan")
) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch `[B, T, D]` and its mask; what pads it is no text's."""
    longest = max(map(len, rows))
    batch, mask = torch.full((len(rows), longest, rows[0].shape[1]), fill), torch.zeros(len(rows), longest).long()
    for i, own in enumerate(rows):
        place = slice(longest - len(own), longest) if left else slice(0, len(own))
        batch[i, place], mask[i, place] = own, 1
    return batch, mask


def same(found: list[States], wanted: list[torch.Tensor]) -> None:
    assert [len(s) for s in found] == [len(rows) for rows in wanted]
    assert all(torch.equal(s.hidden, rows) for s, rows in zip(found, wanted, strict=True))


def refused(*given, **named) -> str:
    with pytest.raises(InputError) as error:
        texts_of(*given, **named)
    message = str(error.value)
    assert "\n" not in message
    assert "expected" in message
    assert ":" in message, "what to do?"
    return message


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
def test_a_padded_batch_with_its_mask(inv, rows, left):
    batch, mask = padded(rows, left)
    for given in (batch, batch.numpy()):
        for own in (mask, mask.bool(), mask.float().numpy(), mask.tolist()):
            same(texts_of(given, LAST, own), rows)
    assert exact(inv.invert(batch, attention_mask=mask), TRUTH)


def test_without_a_mask_every_row_is_taken(inv, rows):
    batch, _ = padded(rows, fill=0.5)
    assert [len(s) for s in texts_of(batch, LAST)] == [7, 7, 7]
    assert exact(inv.invert(batch)[2:], TRUTH[2:])


def test_an_array_of_any_kind(rows):
    one = rows[0]
    wide = np.zeros((5, 2 * WIDTH), np.float32)
    wide[:, ::2] = one.numpy()
    for given in (
        one.numpy(),
        one.double().numpy(),
        one.numpy().astype(">f4"),
        wide[:, ::2],
        one.numpy()[::-1].copy()[::-1],
        one.tolist(),
        tuple(map(tuple, one.tolist())),
        [one.tolist()],
        list(one),
        list(one.numpy()),
        one[None],
        [one[None]],
        {"anything": one},
    ):
        (found,) = texts_of(given, LAST)
        assert torch.equal(found.hidden.float(), one), type(given)


def test_numpy_has_no_bf16_but_two_bytes_of_one(rows):
    coarse = rows[0].bfloat16()
    (found,) = texts_of(coarse.view(torch.int16).numpy().view("V2"), LAST)
    assert torch.equal(found.hidden, coarse)
    assert found.dtype == "bfloat16"


def test_lists_may_mix_what_they_hold_and_keep_its_order(inv, rows):
    batch, mask = padded(rows)
    given = [rows[1], batch, States(rows[0]), rows[2].numpy(), rows[1][None], rows[0].tolist()]
    truth = [TRUTH[1], *TRUTH, TRUTH[0], TRUTH[2], TRUTH[1], TRUTH[0]]
    assert exact(inv.invert(given, attention_mask=[None, mask, None, None, [1, 1], None]), truth)
    assert exact(inv.invert(row for row in rows), TRUTH)


def test_ragged_nested_lists_are_texts(rows):
    assert [s.hidden.tolist() for s in texts_of([row.tolist() for row in rows], LAST)] == [row.tolist() for row in rows]


def test_a_nested_tensor_is_its_texts(rows):
    same(texts_of(torch.nested.nested_tensor(rows, layout=torch.jagged), LAST), rows)


def test_all_layers_as_one_array(rows):
    ids = torch.tensor([TRUTH[0]])
    hidden = make("llama")(ids, output_hidden_states=True).hidden_states
    for layer in (0, 2, -1):
        (states,) = texts_of(torch.stack(hidden), Layer(layer, BLOCKS))
        assert torch.equal(states.hidden, hidden[layer][0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("held", [np.float32, np.float64])
def test_precision_is_seen_in_the_numbers_whatever_holds_them(rows, dtype, held):
    """The padding has numbers of its own, and no part in it."""
    batch, mask = padded([row.to(dtype).float() for row in rows], fill=0.1)
    for states in texts_of(batch.numpy().astype(held), LAST, mask):
        assert states.precision()[0] == str(dtype).removeprefix("torch.")


def test_a_text_of_padding_alone_is_empty(inv, rows):
    batch, mask = padded(rows[:2])
    mask[1] = 0
    found = inv.invert(batch, attention_mask=mask)
    assert exact(found, [TRUTH[0], []])


@hypothesis.given(st.data())
def test_spans_are_where_the_ones_are(data):
    length = data.draw(st.integers(1, 8))
    ends = [data.draw(st.tuples(st.integers(0, length), st.integers(0, length))) for _ in range(3)]
    wanted = [(min(e), max(e)) if e[0] != e[1] else (0, 0) for e in ends]
    mask = torch.zeros(3, length)
    for row, (start, stop) in zip(mask, wanted, strict=True):
        row[start:stop] = 1
    assert spans(mask) == wanted


MASKS = {
    "another batch": (torch.ones(3, 4), ["[3, 4]", "[2, 4]"]),
    "another length": (torch.ones(2, 5), ["[2, 5]", "[2, 4]"]),
    "holes": (torch.tensor([[1, 1, 1, 1], [1, 0, 1, 0]]), ["text 1", "zeros between ones"]),
    "added to scores": (torch.tensor([[0.0, -1e9, 0, 0]] * 2), ["numbers other than 0 and 1"]),
    "four dimensions": (torch.ones(2, 1, 4, 4), ["[2, 1, 4, 4]"]),
    "text": ("1111", ["attention mask is a str"]),
}


@pytest.mark.parametrize("kind", MASKS)
def test_masks_that_cannot_be(kind):
    mask, words = MASKS[kind]
    message = refused(torch.zeros(2, 4, WIDTH), LAST, attention_mask=mask)
    assert all(word in message for word in words), message


def test_a_mask_needs_a_batch():
    assert "list of 2" in refused([torch.zeros(4, WIDTH)] * 2, LAST, attention_mask=torch.ones(2, 4))
    assert "States" in refused(States(torch.zeros(4, WIDTH)), LAST, attention_mask=torch.ones(1, 4))


REFUSED = {
    "a path": ("states.npy", ["'states.npy'", "invert-fast invert"]),
    "objects": (np.array([{}, 1], dtype=object), ["Python objects"]),
    "words": ([["a", "b"]], ["'a'"]),
    "ragged rows": ([[1.0, 2.0], [3.0]], ["list"]),
    "rows of two widths": ([torch.zeros(3), torch.zeros(4)], ["3 to 4 wide"]),
    "ids in lists": ([[1, 2, 3]], ["int64", "token ids"]),
    "five dimensions": (torch.zeros(1, 1, 1, 1, 1), ["[1, 1, 1, 1, 1]"]),
    "sparse": (torch.eye(3).to_sparse(), ["sparse", "to_dense"]),
    "no data": (torch.zeros(3, WIDTH, device="meta"), ["meta"]),
    "a mapping of several": ({"a": torch.zeros(2, WIDTH), "b": torch.zeros(3, WIDTH)}, ["a float32 [2, 64]", "b "]),
    "a mapping of none": ({"ids": torch.zeros(2, 3).long()}, ["ids int64 [2, 3]"]),
    "layers of another model": (torch.zeros(3, 1, 2, WIDTH), ["3 entries", "expected 4"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_states_is_refused_in_words(kind):
    given, words = REFUSED[kind]
    message = refused(given, LAST)
    assert all(word in message for word in words), message


def test_what_rows_of_another_width_probably_are(inv):
    for given, word in ((torch.zeros(3, 300), "invert_logits"), (torch.zeros(WIDTH, 9), "transpose")):
        with pytest.raises(InputError, match=word):
            inv.invert(given)
