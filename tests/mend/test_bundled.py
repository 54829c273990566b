"""Edits of texts that the package ships, 33 tokens long, on the bundled model: at its last layer and in the middle."""

from __future__ import annotations

import pytest
import torch

from invert_fast import Inverter, Reading, Status

from .edits import bundled, judge, prose, rows_of, small

layers = pytest.mark.parametrize("layer", ["final_norm", "block:1"])


@layers
def test_shuffled_rows_are_put_in_order(layer):
    inverter = bundled(layer)
    ids = prose(inverter, 0)
    order = torch.randperm(33, generator=torch.Generator().manual_seed(0))
    (found,) = inverter.mend(rows_of(inverter, ids)[order], "order")
    assert found.certified
    assert found.token_ids.tolist() == ids
    assert [int(order[row]) for row in found.mended.rows] == list(range(33))
    assert found.text == inverter.decoder.decode(ids)
    assert 33 < found.cost.forward_tokens < 33 * 60


@layers
def test_mixed_texts_are_told_apart(layer):
    inverter, generator = bundled(layer), torch.Generator().manual_seed(1)
    texts = [prose(inverter, 0), prose(inverter, 200, 20)]
    turns = torch.rand(53, generator=generator).argsort().tolist()
    places = [sorted(i for i in range(53) if turns[i] < 33), sorted(i for i in range(53) if turns[i] >= 33)]
    rows = torch.zeros(53, inverter.decoder.width)
    for ids, where in zip(texts, places, strict=True):
        rows[where] = rows_of(inverter, ids)
    found = inverter.mend(rows, "mixed")
    assert all(one.certified for one in found)
    assert sorted(one.token_ids.tolist() for one in found) == sorted(texts)
    assert sorted(list(one.mended.rows) for one in found) == sorted(places)


@layers
@pytest.mark.parametrize("strength", [0.2, 3.0])
def test_a_vector_on_all_rows_is_taken_out(layer, strength):
    inverter = bundled(layer)
    ids = prose(inverter, 40)
    rows = rows_of(inverter, ids)
    vector = torch.randn(rows.shape[1], generator=torch.Generator().manual_seed(2))
    vector *= strength * rows[1:].norm(dim=-1).median() / vector.norm()
    (found,) = inverter.mend(rows + vector, "steering")
    assert found.token_ids.tolist() == ids
    assert found.certified
    assert torch.as_tensor(found.mended.vector).float().sub(vector).norm() < 1e-3 * vector.norm()
    (known,) = inverter.mend(rows + vector, "steering", direction=vector.numpy())
    assert known.certified
    assert "strength 1" in known.mended.sentence or "strength 0.99999" in known.mended.sentence


def test_a_gap_of_one_is_filled_and_certified_for_every_token_was_tried():
    inverter = bundled()
    ids = prose(inverter, 0)
    rows = rows_of(inverter, ids)
    (found,) = inverter.mend(torch.cat([rows[:12], rows[13:]]), "gap", missing=(12,))
    assert found.certified
    assert found.token_ids.tolist() == ids
    assert found.mended.rows == (*range(12), -1, *range(12, 32))
    assert "no other token explains the rows behind" in found.mended.sentence
    assert found.cost.forward_tokens > inverter.vocabulary.size  # none was left out


def test_a_long_gap_is_out_of_reach_and_what_stands_before_it_is_certified():
    inverter = bundled()
    ids = prose(inverter, 0)
    rows = rows_of(inverter, ids)
    rows[10:14] = 0
    (found,) = inverter.mend(rows, "gap")
    assert (found.status[:10] == Status.CERTIFIED).all()
    assert found.status[10] == Status.NOT_FOUND
    assert (found.status[11:] == Status.AFTER_FAILURE).all()
    assert judge([found], ids) == 10
    assert "the gap at 10 has 4 rows" in found.mended.sentence


def test_a_gap_at_the_end_has_nothing_that_tells():
    inverter = bundled()
    rows = rows_of(inverter, prose(inverter, 0, 8))
    rows[7] = torch.nan
    (found,) = inverter.mend(rows, "gap")
    assert found.first_failure == 7
    assert "no row stands behind the gap at 7" in found.mended.sentence


def test_a_front_of_one_token_behind_a_bos_is_found_and_named():
    inverter = bundled()
    bos = inverter.decoder.tokenizer.bos_token_id
    ids = [bos, *prose(inverter, 0, 11)]
    (found,) = inverter.mend(rows_of(inverter, ids)[2:], "front")
    assert found.certified
    assert found.token_ids.tolist() == ids[2:]
    assert found.mended.front == (bos, ids[1])


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_embeddings_say_nothing_of_what_is_missing(family):
    inverter = small(family, 0)
    ids = [5, 9, 40, 3, 17, 22, 51, 8]
    rows = rows_of(inverter, ids)
    rows[5] = torch.nan
    (found,) = inverter.mend(rows, "gap")
    assert found.status[5] == Status.AMBIGUOUS
    assert len(found.alternatives[5]) > 20
    assert judge([found], ids) == 7
    order = [3, 0, 2, 1, *range(4, 8)]
    (found,) = inverter.mend(rows_of(inverter, ids)[order], "order")
    shows = family == "gpt2"  # its positions are added to the embeddings; rotations come later
    assert judge([found], [ids[i] for i in order]) == (8 if shows else 0)
    assert shows or "several of the others go on from there equally well" in found.mended.sentence


def test_a_mended_recovery_is_of_the_reading_that_was_asked_for():
    model = bundled().decoder.model
    bos = bundled().decoder.tokenizer.bos_token_id
    inverter = Inverter(model, bundled().decoder.tokenizer, reading=Reading(scale=4.0, prefix=(bos,)))
    ids = prose(inverter, 0, 10)
    rows = 4.0 * rows_of(bundled(), [bos, *ids])[1:]
    order = [3, 0, 2, 1, *range(4, 10)]
    (found,) = inverter.mend(rows[order], "order")
    assert found.certified
    assert found.token_ids.tolist() == ids
