"""What a linear lens is fitted on: texts begun as captures are, written in a few of the tokens where those are many."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tqdm import tqdm

from invert_fast import Inverter
from invert_fast.lens import deepen, mixture, writing
from invert_fast.lens.mixture import Mixture
from invert_fast.lens.writing import likely_tokens, write
from invert_fast.model.samples import held_out_page_ids, opening_of, opening_of_chat, page_ids, prose_ids

from ..families import VOCAB, Tokenizer, build, make

pytestmark = pytest.mark.numeric


def bar() -> tqdm:
    return tqdm(disable=True)


def mixed(inv: Inverter, seed: int = 0) -> Mixture:
    return Mixture(inv.decoder, inv.vocabulary, seed, 0.0, bar())


def test_texts_begin_as_the_tokenizer_begins_them_and_some_with_nothing(shared, monkeypatch):
    monkeypatch.setattr(mixture, "_LEAST", 4096)
    inv = Inverter.from_pretrained(shared / "models" / "tinystories-656k", device="cpu")
    (bos,) = opening_of(inv.decoder)
    found = mixed(inv)
    ids = found.texts()
    assert ids.shape == (found.rows, found.length)
    begun = (ids[:, 0] == bos).float().mean()
    assert 0.3 < begun < 0.8
    assert torch.equal(ids, mixed(inv).texts()), "deterministic"
    assert not torch.equal(ids, mixed(inv, seed=1).texts())


@pytest.mark.parametrize("cheap", [True, False])
def test_only_usable_tokens_and_one_of_a_class_are_in_them(cheap, monkeypatch):
    monkeypatch.setattr(mixture, "_LEAST", 2048)
    monkeypatch.setattr(mixture, "_CHEAP", 10**9 if cheap else 0)
    inv = Inverter(build("gpt2"), Tokenizer(VOCAB - 30))
    state = torch.get_rng_state()
    ids = mixed(inv).texts()
    assert inv.vocabulary.usable[ids].all()
    assert torch.equal(inv.vocabulary.representative[ids], ids)
    assert torch.equal(torch.get_rng_state(), state), "the global random generator moved"


def test_what_is_written_is_likelier_than_chance():
    inv = Inverter(build("gpt2"))
    starts = torch.arange(40)[:, None]
    ids = write(inv.decoder, starts, 20, None, torch.Generator().manual_seed(0), bar())
    assert ids.shape == (40, 20)
    assert torch.equal(ids[:, :1], starts)
    random = torch.randint(VOCAB, ids.shape, generator=torch.Generator().manual_seed(1))

    def surprise(texts):
        return -inv.decoder.log_probs(inv.decoder.capture(texts))[:, :-1].gather(2, texts[:, 1:, None]).mean()

    assert surprise(ids) < surprise(random) - 0.3


def test_of_a_large_vocabulary_only_likely_tokens_are_written(monkeypatch):
    monkeypatch.setattr(writing, "SMALL", 10)
    monkeypatch.setattr(writing, "_LIKELY", 4)
    inv = Inverter(make("llama"), layer="block:0")  # the last layer is asked, whatever the decoder's is
    given = torch.arange(12).view(2, 6)
    tokens = likely_tokens(inv.decoder, inv.vocabulary, given)
    assert tokens is not None
    assert 12 < len(tokens) < VOCAB
    ids = write(inv.decoder, given[:, :1], 9, tokens, torch.Generator().manual_seed(0), bar())
    assert torch.isin(ids, tokens).all()


def test_the_package_has_prose_for_any_tokenizer():
    inv = Inverter.from_pretrained("bundled", device="cpu")
    assert len(prose_ids(inv.decoder)) > 8000
    assert prose_ids(Inverter(make("gpt2")).decoder) == []


@pytest.fixture
def reader(monkeypatch) -> Inverter:
    """A model that is given pages, as those are that are too large to write much; any text it writes is an error."""
    monkeypatch.setattr(mixture, "_CHEAP", 0)
    monkeypatch.setattr(mixture, "_LEAST_DEAR", 4096)
    monkeypatch.setattr(mixture, "_A_NUMBER_DEAR", 1)
    monkeypatch.setattr(mixture, "write", None)
    return Inverter.from_pretrained("bundled", device="cpu")


@pytest.mark.slow
def test_pages_are_read_in_their_order_behind_what_texts_begin_with(reader):
    found = mixed(reader)
    ids = found.texts()
    assert found.given == page_ids(reader.decoder, len(found.given))
    pages, begun = torch.tensor(found.given).view(-1, found.length), opening_of(reader.decoder)
    assert len(pages) == round(0.75 * found.rows)
    expected = {tuple(row) for row in pages.tolist()} | {(*begun, *row[: -len(begun)]) for row in pages.tolist()}
    unchanged = sum(tuple(row) in expected for row in ids.tolist())
    assert 0.25 * found.rows < unchanged < 0.5 * found.rows, "half of the pages have other tokens among theirs"


@pytest.mark.slow
def test_what_is_held_out_is_in_no_page_that_a_fit_reads(reader):
    found = mixed(reader)
    held = found.held_out(found.texts())
    assert len(held.ids) == 3 * found.held_rows
    room = found.length - len(opening_of(reader.decoder))
    apart = held_out_page_ids(reader.decoder)
    parts = {tuple(apart[i : i + room]) for i in range(len(apart))}
    assert all(tuple(row[-room:]) in parts for row in held.ids[found.held_rows :].tolist())
    assert not set(zip(*(page_ids(reader.decoder)[i:] for i in range(room)), strict=False)) & parts


@pytest.mark.slow
def test_a_longer_fit_reads_what_is_left_and_then_the_model_writes(reader):
    def left(drawn):
        return deepen._unread(reader.decoder, reader.vocabulary, 0, bar(), drawn)

    found, pages = mixed(reader), page_ids(reader.decoder)
    assert left(0) == left(found.tokens) == pages[len(found.given) :]
    assert left(found.tokens + 2 * deepen._ROUND) == pages[len(found.given) + deepen._READ :], "after a round"
    assert left(10**7) == []
    more = Mixture(reader.decoder, reader.vocabulary, 1, 0.0, bar(), 4096, pages=pages[:3000])
    assert (more.written, more.given) == (0, pages[:3000])
    assert Mixture(reader.decoder, reader.vocabulary, 1, 0.0, bar(), 4096).written > 0


def test_a_chat_templates_opening_is_found_and_none_is_no_error():
    inv = Inverter.from_pretrained("bundled", device="cpu")
    assert opening_of_chat(inv.decoder) == []
    tokenizer: Any = inv.decoder.tokenizer
    tokenizer.chat_template = "{% for m in messages %}User: {{ m['content'] }}\n{% endfor %}"
    assert inv.decoder.decode(opening_of_chat(inv.decoder)) == "User: "
    tokenizer.chat_template = "{{ raise_exception('only tools') }}"
    assert opening_of_chat(inv.decoder) == []
