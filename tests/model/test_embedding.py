"""Embedding rows that are held once: as the model sees them, whatever its embedding module does."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn

from invert_fast import Inverter, ops
from invert_fast.model import row_table
from invert_fast.model.embedding import Embedding
from invert_fast.model.row_table import RowTable
from invert_fast.ops import native
from invert_fast.ops.nearest_tokens import METRICS

from ..families import FAMILIES, VOCAB, WIDTH, Tokenizer, build, embedding_table, exact, texts

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Scaled(nn.Embedding):
    def forward(self, input):
        return super().forward(input) * torch.tensor(7.3).to(self.weight.dtype)


class Shifted(nn.Embedding):
    def forward(self, input):
        return super().forward(input) + 0.5


def module(kind: type[nn.Embedding], dtype: torch.dtype = torch.float32, size: int = VOCAB) -> nn.Embedding:
    weight = torch.randn(size, WIDTH, generator=torch.Generator().manual_seed(0))
    return kind.from_pretrained(weight.to(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", [nn.Embedding, Scaled, Shifted])
def test_rows_are_those_of_the_module_and_products_are_with_them(kind, dtype):
    made = module(kind, dtype, 5000)
    found, every = Embedding(made, torch.device("cpu")), made(torch.arange(5000))
    assert (found.scale is None) == (kind is Shifted)
    ids = torch.tensor([[3, 0], [4999, 3]])
    assert torch.equal(found.rows(ids), every[ids])
    assert torch.equal(found[ids], every[ids].float())
    assert torch.equal(torch.cat([*found.blocks()]), every.float())
    x, bias = torch.randn(9, WIDTH), torch.randn(5000)
    torch.testing.assert_close(found.scores(x, bias), x @ every.float().T + bias, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(found.scores_of(x[:2], ids), (every[ids].float() @ x[:2, :, None])[..., 0])
    torch.testing.assert_close(found.mean(torch.eye(5000)[:7]), every[:7].float())
    torch.testing.assert_close(found.mapped(torch.eye(WIDTH)), every.float())
    torch.testing.assert_close(found.deviation(ids.flatten()), every[ids].float().std())


@pytest.mark.parametrize("metric", METRICS)
def test_nearest_rows_are_those_of_the_scaled_table(metric):
    made = module(Scaled)
    every, queries = made(torch.arange(VOCAB)), 7 * torch.randn(5, WIDTH)
    distances, ids = Embedding(made, torch.device("cpu")).nearest(queries, 4, metric)
    wanted, places = ops.nearest_tokens(queries, every, 4, metric)
    assert torch.equal(ids, places)
    torch.testing.assert_close(distances, wanted, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("family", ["gpt2", "gemma"])
def test_nothing_holds_a_second_copy_of_the_embedding(family, monkeypatch, cache):
    monkeypatch.setattr(row_table, "_KEPT", 0)
    before = _tensors()  # of other tests
    model, truth = build(family, vocab=2000, width=128, blocks=1), texts(9, 12, vocab=2000)
    inv = Inverter(model, Tokenizer(2000))
    assert exact(inv.invert(inv.capture(truth)), truth)
    gc.collect()
    own = {weight.data_ptr() for weight in (embedding_table(model), model.get_output_embeddings().weight)}
    made = [t for t in _tensors() if not any(t is other for other in before)]
    copies = {t.data_ptr() for t in made if t.untyped_storage().nbytes() >= embedding_table(model).nbytes} - own
    assert len(copies) <= 1, "beside the model's own, one is laid out for drafts"
    assert inv.vocabulary.embedding.matrix.data_ptr() == embedding_table(model).data_ptr()


def _tensors() -> list[torch.Tensor]:
    found = [o for o in gc.get_objects() if type(o) in (torch.Tensor, nn.Parameter) and o.dtype == torch.float32]
    return [t for t in found if t.layout == torch.strided and not t.is_meta]


@pytest.mark.parametrize("shape", [(0,), (7,), (3, 2), ()], ids=str)
def test_rows_that_are_computed_are_those_that_are_kept(shape, monkeypatch):
    def make(ids):
        return torch.stack([ids.float().sqrt(), ids.float()], -1)

    kept = RowTable(make, 50, 2, torch.device("cpu"))
    monkeypatch.setattr(row_table, "_KEPT", 0)
    monkeypatch.setattr(row_table, "_AT_ONCE", 4)
    computed = RowTable(make, 50, 2, torch.device("cpu"))
    assert kept._kept is not None
    assert computed._kept is None
    ids = torch.randint(50, shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(computed[ids], kept[ids])
    assert computed[ids].shape == (*shape, 2)


@pytest.mark.parametrize("layer", [-1, "block:0"])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_separates_tokens_is_the_same_from_rows_that_are_computed(family, layer, monkeypatch):
    kept = Inverter(build(family), layer=layer).vocabulary
    monkeypatch.setattr(row_table, "_KEPT", 0)
    for room in ("embedding", "vocabulary"):
        monkeypatch.setattr(f"invert_fast.model.{room}.BLOCK", 70)
    computed = Inverter(build(family), layer=layer).vocabulary
    tokens = torch.arange(0, VOCAB, 7)
    assert computed.seen._kept is None
    torch.testing.assert_close(computed.unit, kept.unit)
    torch.testing.assert_close(computed.distances(tokens), kept.distances(tokens))
    torch.testing.assert_close(computed.separation_of(tokens), kept.separation_of(tokens), rtol=1e-4, atol=1e-6)
    for a, b in zip(computed.wide.of(tokens), kept.wide.of(tokens), strict=True):
        torch.testing.assert_close(a.float(), b.float(), rtol=1e-4, atol=1e-6)


@pytest.mark.skipif(not native.has("linear"), reason="no compiled product on this machine")
@pytest.mark.parametrize("kind", [nn.Embedding, Scaled])
def test_rows_published_in_bf16_are_read_from_half_as_many_bytes(kind):
    made = module(kind)
    made.weight.data = made.weight.bfloat16().float()
    found, other = Embedding(made, torch.device("cpu")), Embedding(module(kind), torch.device("cpu"))
    assert found.copied == made.weight.nbytes // 2
    assert other.copied == 0
    every, bias = made(torch.arange(VOCAB)), torch.randn(VOCAB)
    for rows in (1, 3, 64, 65):
        x = torch.randn(rows, WIDTH)
        torch.testing.assert_close(found.scores(x, bias), x @ every.T + bias, rtol=1e-4, atol=1e-3)
    assert found.reads_faster(made.weight)
    assert not found.reads_faster(made.weight.clone())
    assert not other.reads_faster(other.weight)


@pytest.mark.skipif(not native.has("linear"), reason="no compiled product on this machine")
@pytest.mark.parametrize("family", ["gemma", "llama"])
def test_the_prior_of_a_tied_head_is_the_models_own_whatever_it_is_read_from(family):
    model = build(family)
    table = embedding_table(model)
    table.copy_(table.bfloat16().float())
    decoder = Inverter(model).decoder
    assert decoder.embedding.reads_faster(model.get_output_embeddings().weight) == (
        family == "gemma"
    )  # which ties them
    ids = torch.tensor(texts(9))
    wanted = model(ids).logits[0].log_softmax(-1)
    torch.testing.assert_close(decoder.log_probs(decoder.states(ids))[0], wanted, rtol=1e-3, atol=1e-3)
