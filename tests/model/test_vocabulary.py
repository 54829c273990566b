"""What can be told apart: classes of equal rows, distances and rivals, against brute force in float64."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from invert_fast import Inverter
from invert_fast.model.decoder import Decoder
from invert_fast.model.embedding import Embedding
from invert_fast.model.vocabulary import RIVALS_MOST, Vocabulary
from invert_fast.model.wide import Wide

from ..families import FAMILIES, Tokenizer, build, embedding_table, inverter


def vocabulary(table: Tensor, usable: int | None = None) -> Vocabulary:
    """Of a decoder that is nothing but its embedding matrix."""
    usable = len(table) if usable is None else usable
    embedding = Embedding(torch.nn.Embedding.from_pretrained(table), table.device)
    decoder = SimpleNamespace(embedding=embedding, usable_ids=usable, seen_rows=lambda: embedding)
    return Vocabulary(decoder)  # type: ignore[arg-type]


def random(V: int, D: int, seed: int = 0) -> Tensor:
    return torch.randn(V, D, generator=torch.Generator().manual_seed(seed))


def near(table: Tensor, pairs: dict[int, int], relative: float, seed: int = 0) -> Tensor:
    """Row `a` of each pair becomes row `b`, moved by `relative` of its length."""
    table, generator = table.clone(), torch.Generator().manual_seed(seed)
    for a, b in pairs.items():
        way = torch.randn(table.shape[1], generator=generator)
        table[a] = table[b] + relative * table[b].norm() * way / way.norm()
    return table


def distances(vocabulary: Vocabulary) -> Tensor:
    """`[V, V]` exact distances to allowed rows of another class, each row in the unit that `vocabulary` gives it."""
    everyone = torch.arange(vocabulary.size)
    table = vocabulary.embedding[everyone].double()
    exact = torch.cdist(table, table, compute_mode="donot_use_mm_for_euclid_dist")
    exact /= (exact / vocabulary.distances(everyone).double()).nanmedian(-1, keepdim=True).values
    same = vocabulary.representative[:, None] == vocabulary.representative
    return exact.masked_fill(same | ~vocabulary.allowed, torch.inf)


# ---- classes


@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 40), st.integers(0, 99))
def test_classes_of_equal_rows_are_those_of_brute_force(V, D, usable, seed):
    generator = torch.Generator().manual_seed(seed)
    table = torch.randint(-1, 2, (V, D), generator=generator).float()  # many rows equal
    table *= torch.where(torch.rand(V, D, generator=generator) < 0.5, 1.0, -1.0)  # and some zeros negative
    usable = min(usable, V)
    found = vocabulary(table, usable)
    for i in range(V):
        same = [j for j in range(V) if all(a == b for a, b in zip(table[i].tolist(), table[j].tolist(), strict=True))]
        assert found.representative[i] == same[0]
        assert found.equals(i) == [j for j in same if j < usable]
        assert found.class_size[i] == len(found.equals(i))
        assert found.allowed[i] == (i < usable and i == same[0])


def test_minus_zero_is_zero_and_nothing_else_is():
    tiny = torch.finfo(torch.float32).smallest_normal
    found = vocabulary(torch.tensor([[0.0, 1], [-0.0, 1], [tiny, 1], [-tiny, 1], [0.0, 1 + 2**-23], [0.0, 1]]))
    assert found.representative.tolist() == [0, 0, 2, 3, 4, 0]


def test_rows_that_differ_in_their_last_bit_are_different():
    row = random(1, 64)
    table = torch.cat([row, torch.nextafter(row, torch.tensor(9.0)), row.clone()])
    table[1, 1:] = row[0, 1:]
    assert vocabulary(table).representative.tolist() == [0, 1, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_classes_are_those_of_the_stored_precision(dtype):
    table = near(random(30, 16), {7: 3}, 1e-6).to(dtype)
    assert vocabulary(table).equals(7) == [3, 7]


def test_classes_are_of_rows_as_the_model_sees_them():
    model = build("gemma")
    embedding_table(model)[9] = embedding_table(model)[4]
    found = Vocabulary(Decoder(model, Tokenizer(280)))
    assert found.equals(9) == [4, 9]
    assert int(found.allowed.sum()) == 279
    torch.testing.assert_close(
        found.embedding[torch.arange(found.size)], 8 * embedding_table(model), msg="gemma scales its embeddings"
    )


# ---- distances


@pytest.mark.parametrize("relative", [1.0, 1e-3, 1e-6])
def test_distances_are_exact_however_near(relative):
    found = vocabulary(near(random(60, 16), {2 * k + 1: 2 * k for k in range(10)}, relative))
    torch.testing.assert_close(
        found.distances(torch.arange(60)).double().fill_diagonal_(torch.inf), distances(found), rtol=1e-3, atol=1e-7
    )


@pytest.mark.parametrize("layer", [-1, "block:0"])
@pytest.mark.parametrize("family", FAMILIES)
def test_separation_is_the_distance_to_the_nearest_other_row(family, layer):
    found = inverter(family, layer).vocabulary
    every = found.distances(torch.arange(found.size)).fill_diagonal_(torch.inf)
    torch.testing.assert_close(
        found.separation_of(torch.arange(found.size)), every.min(-1).values, rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("usable", [300, 250, 2])
def test_separation_looks_at_allowed_rows_only(usable):
    table = near(random(300, 16), {1: 0, 299: 3}, 1e-3)
    table[5] = table[4]
    found = vocabulary(table, usable)
    torch.testing.assert_close(
        found.separation_of(torch.arange(found.size)).double(), distances(found).min(-1).values, rtol=1e-3, atol=1e-6
    )


def test_a_vocabulary_of_one_token_has_no_rival():
    found = vocabulary(torch.ones(4, 8))
    assert found.equals(2) == [0, 1, 2, 3]
    assert found.separation_of(torch.arange(found.size)).isinf().all()


@pytest.mark.parametrize("relative", [1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("length", [1.0, 100.0])
def test_separation_is_never_overstated_for_near_rows(relative, length):
    """A bound that is too large certifies a wrong token; one that is too small only costs time."""
    table = random(300, 64)
    table[:40] *= length
    found = vocabulary(near(table, {2 * k + 1: 2 * k for k in range(20)}, relative))
    exact = distances(found).min(-1).values
    assert (found.separation_of(torch.arange(found.size)) <= 1.001 * exact + 1e-7 * length).all()


def test_separation_is_never_overstated_in_a_cluster():
    """The nearest at 1e-6 among a dozen at 3e-4: too close for distances by matrix product to order."""
    table = near(random(300, 64), dict.fromkeys(range(1, 20), 0), 3e-4)
    found = vocabulary(near(table, {2 * k + 1: 2 * k for k in range(10)}, 1e-6))
    exact = distances(found).min(-1).values
    assert (found.separation_of(torch.arange(20)) <= 1.001 * exact[:20] + 1e-7).all()


def test_large_vocabularies_are_searched_in_a_projection():
    table = near(random(8300, 72), {8000 + k: k for k in range(40)}, 0.05)
    found = vocabulary(near(table, {8100 + k: 100 + k for k in range(40)}, 0.3), usable=8290)
    rows = torch.arange(0, 400)
    exact = found.distances(rows)
    exact = exact.masked_fill((rows[:, None] == torch.arange(8300)) | ~found.allowed, torch.inf).min(-1).values
    separation = found.separation_of(rows)
    assert (separation <= exact + 1e-4).all(), "a bound that is too large certifies a wrong token"
    assert (separation >= 0.5 * exact).all(), "far too careful"
    assert (exact < 0.5).sum() == 80
    torch.testing.assert_close(separation[exact < 0.5], exact[exact < 0.5], rtol=1e-2, atol=1e-3)


def test_closest_pairs_are_the_closest():
    twins = {11: 3, 29: 8, 17: 40}
    found = vocabulary(near(random(60, 16), twins, 0.05), usable=55)
    tokens, rivals = found.closest_pairs(6)
    assert {frozenset(pair) for pair in zip(tokens.tolist(), rivals.tolist(), strict=True)} == {
        frozenset(pair) for pair in twins.items()
    }
    assert len(found.closest_pairs(999)[0]) == 55


# ---- rivals


@given(
    st.integers(0, 59),
    st.floats(-7, 0.5).map(lambda x: 10.0**x),
    st.floats(-7, 0).map(lambda x: 10.0**x),
    st.integers(0, 20),
)
def test_rivals_are_all_untried_tokens_within_the_radius(token, radius, relative, seed):
    """One left out is one that may fit as well, and a wrong token is certified."""
    table = near(random(60, 32, seed), {2 * k + 1: 2 * k for k in range(20)}, relative, seed)
    found = vocabulary(table, usable=55)
    tried = torch.rand(1, 60, generator=torch.Generator().manual_seed(seed)) < 0.3
    tried[0, token] = True
    exact = distances(found)[token].masked_fill(tried[0], torch.inf)
    rivals = found.rivals(torch.tensor([token]), torch.tensor([radius]), tried, 60)[0][0].tolist()
    named = {i for i in rivals if i >= 0}
    assert named >= {i for i, d in enumerate(exact.tolist()) if d < 0.99 * radius}
    assert named <= {i for i, d in enumerate(exact.tolist()) if d < 1.01 * radius + 1e-6}
    few = found.rivals(torch.tensor([token]), torch.tensor([radius]), tried, 3)[0][0].tolist()
    assert [i for i in few if i >= 0] == [i for i in rivals if i >= 0][:3]


@pytest.mark.parametrize("relative", [1e-2, 1e-4, 1e-5, 1e-6, 1e-7])
def test_near_rivals_are_found_however_near(relative):
    found = vocabulary(near(random(300, 64), {2 * k + 1: 2 * k for k in range(50)}, relative))
    tokens = torch.arange(100)
    exact = distances(found).min(-1).values[tokens].float()
    tried = torch.nn.functional.one_hot(tokens, 300).bool()
    rivals = found.rivals(tokens, 2 * exact, tried, 1)[0][:, 0]
    assert rivals.tolist() == (tokens ^ 1).tolist()


def test_rivals_of_tried_and_unusable_tokens_are_none_even_without_a_bound():
    found = vocabulary(random(6, 4), usable=4)
    tried = torch.tensor([[True, True, False, True, False, False], [True] * 6])
    rivals = found.rivals(torch.tensor([0, 0]), torch.full((2,), torch.inf), tried, 6)[0]
    assert [[i for i in row if i >= 0] for row in rivals.tolist()] == [[2], []]


def test_separations_of_a_few_tokens_are_those_of_all():
    vocabulary = Inverter.from_pretrained("bundled").vocabulary
    few = torch.tensor([[5, 4000, 5], [17, 0, 2048]])
    alone = vocabulary.separation_of(few)
    assert len(vocabulary.neighbours) == 5, "all rows were looked up for a few"
    again = vocabulary.separation_of(few.flatten())
    torch.testing.assert_close(alone, vocabulary.separation_of(torch.arange(vocabulary.size))[few])
    assert torch.equal(alone.flatten(), again)


def test_rivals_in_waves_are_all_of_them():
    """Rows of many directions: what is nearest in a projection is not what is nearest."""
    found = vocabulary(random(1500, 200))
    tokens = torch.arange(12)
    exact = distances(found)[:12].float().fill_diagonal_(torch.inf)
    radius = exact.sort(-1).values[:, 90] * 1.0001
    named: list[set[int]] = [set() for _ in tokens]
    start = 0
    for stop in (2, 8, 32, 256):
        ids, more = found.rivals_within(tokens, radius, start, stop)
        for names, row in zip(named, ids.tolist(), strict=True):
            fresh = [i for i in row if i >= 0]
            assert not names & set(fresh), "tried twice"
            names |= set(fresh)
        start = stop
    assert not more.any()
    for names, row, limit in zip(named, exact, radius, strict=True):
        assert names >= set((row < 0.999 * limit).nonzero().flatten().tolist())
        assert len(names) in (90, 91, 92)


def test_a_radius_that_is_no_number_leaves_nothing_out():
    found = vocabulary(random(60, 16))
    ids, _ = found.rivals_within(torch.tensor([3]), torch.tensor([torch.nan]), 0, 256)
    assert (ids >= 0).sum() == 59
    none = torch.zeros(1, 60, dtype=torch.bool)
    assert (found.rivals(torch.tensor([3]), torch.tensor([torch.nan]), none, 64)[0] >= 0).sum() >= 32


@pytest.mark.parametrize("flat", [True, False])
def test_the_widely_nearest_are_those_of_all_rows(flat, monkeypatch):
    """Whether a list from the projection can hold them, as of rows that lie near a plane, or all rows are searched."""
    monkeypatch.setattr("invert_fast.model.wide._LISTED", 600)
    searched = Wide._searched
    calls: list[int] = []
    monkeypatch.setattr(Wide, "_searched", lambda *args: calls.append(1) or searched(*args))
    rows = (
        random(1500, 20) @ random(200, 20, seed=1).T + 1e-3 * random(1500, 200, seed=2) if flat else random(1500, 200)
    )
    found = vocabulary(rows)
    tokens = torch.tensor([3, 900, 3, 41])
    ids, distance = found.wide.of(tokens)
    assert bool(calls) is not flat
    exact = distances(found)[tokens].float()
    exact[torch.arange(4), tokens] = torch.inf
    wanted = exact.sort(-1).values[:, : ids.shape[1] - 1]
    torch.testing.assert_close(distance[:, :-1], wanted, rtol=1e-4, atol=1e-5)  # the token itself is the last
    torch.testing.assert_close(exact.gather(1, ids[:, :-1]), wanted, rtol=1e-4, atol=1e-5)
    calls.clear()
    again = found.wide.of(tokens.flip(0))
    assert torch.equal(again[0].flip(0), ids)
    assert not calls, "looked up twice"


def test_whether_a_rival_is_left_does_not_hang_on_how_many_are_asked_for():
    """A row that is near in the projection need not be among the nearest of all."""
    found = vocabulary(random(1500, 200))
    tokens = torch.arange(12)
    tried = torch.zeros(12, 1500, dtype=torch.bool)
    everything = torch.full((12,), torch.inf)
    nearest = found.rivals(tokens, everything, tried, RIVALS_MOST)[0]
    tried.scatter_(1, nearest, True)
    for count in (1, 4, 32):
        left, more = found.rivals(tokens, everything, tried, count)
        assert (left < 0).all()
        assert more.all()
