"""Nearest rows, looked up for the tokens that occur: none is overlooked, and they are kept."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from invert_fast.model import neighbour_store
from invert_fast.model.neighbours import NEAREST, Neighbours

pytestmark = pytest.mark.numeric


def table(size: int, width: int, seed: int = 0, low_rank: int | None = None) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(size, width, generator=generator)
    if low_rank:
        rows = torch.randn(size, low_rank, generator=generator) @ torch.randn(low_rank, width, generator=generator)
    return rows


def neighbours(rows: torch.Tensor, allowed: torch.Tensor | None = None) -> Neighbours:
    allowed = torch.ones(len(rows), dtype=torch.bool) if allowed is None else allowed
    return Neighbours(rows, allowed, torch.arange(len(rows)), torch.full((len(rows),), 2.0))


def brute(rows: torch.Tensor, token: int, allowed: torch.Tensor) -> torch.Tensor:
    away = (rows.double() - rows[token].double()).norm(dim=-1) / 2.0
    away[token] = torch.inf
    return away.masked_fill(~allowed, torch.inf)


@given(
    st.sampled_from([(5, 8), (40, 16), (500, 16), (500, 100), (900, 200)]), st.integers(0, 30), st.sampled_from([0, 9])
)
def test_whatever_is_not_listed_is_as_far_away_as_is_said(shape, seed, rank):
    rows = table(*shape, seed, rank or None)
    rows[1] = rows[0] * (1 + 1e-6)
    allowed = torch.rand(shape[0], generator=torch.Generator().manual_seed(seed)) < 0.8
    allowed[:2] = True
    found = neighbours(rows, allowed)
    tokens = torch.arange(min(shape[0], 30))
    ids, distance, beyond = found.of(tokens)
    assert ids.shape == distance.shape == (len(tokens), NEAREST)
    for row, token in enumerate(tokens.tolist()):
        exact = brute(rows, token, allowed)
        listed = ids[row][ids[row] >= 0]
        torch.testing.assert_close(distance[row][ids[row] >= 0].double(), exact[listed], rtol=1e-3, atol=1e-6)
        assert (distance[row].diff().nan_to_num() >= 0).all()
        rest = exact.clone()
        rest[listed] = torch.inf
        assert rest.min() >= beyond[row] - 1e-6, "a row that was not listed is nearer than was said"
        assert token not in listed.tolist()


def test_tokens_are_looked_up_once():
    found = neighbours(table(200, 16))
    first = found.of(torch.tensor([3, 7, 3]))
    assert len(found) == 2
    found._look_up = None  # type: ignore[assignment]
    assert all(torch.equal(a, b) for a, b in zip(found.of(torch.tensor([3, 7, 3])), first, strict=True))


def test_what_was_looked_up_is_kept_and_read(cache):
    rows = table(300, 16)
    found = neighbours(rows)
    expected = found.of(torch.arange(50))
    neighbour_store.write("some.safetensors", found)
    again = neighbours(rows)
    assert neighbour_store.read("some.safetensors", again) == 50
    again._look_up = None  # type: ignore[assignment]
    assert all(torch.equal(a, b) for a, b in zip(again.of(torch.arange(50)), expected, strict=True))


@pytest.mark.parametrize(
    "damage", ["cut", "ids", "negative", "unsorted", "twice", "nan", "narrow", "float ids", "missing"]
)
def test_a_damaged_file_is_not_believed_and_said_so(cache, damage, caplog):
    found = neighbours(table(300, 16))
    found.of(torch.arange(50))
    neighbour_store.write("some.safetensors", found)
    (path,) = cache.iterdir()
    held = load_file(path)
    changed = {
        "ids": {"ids": held["ids"] + 300},
        "negative": {"distance": -held["distance"]},
        "unsorted": {"distance": held["distance"].flip(1).contiguous()},
        "twice": {"tokens": torch.zeros_like(held["tokens"])},
        "nan": {"beyond": held["beyond"] * torch.nan},
        "narrow": {"ids": held["ids"][:, :3].contiguous()},
        "float ids": {"ids": held["ids"].float()},
    }
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-7])
    elif damage == "missing":
        save_file({k: v for k, v in held.items() if k != "beyond"}, path)
    else:
        save_file(held | changed[damage], path)
    fresh = neighbours(table(300, 16))
    assert neighbour_store.read("some.safetensors", fresh) == 0
    assert "looking them up again" in caplog.text
    assert len(fresh) == 0
