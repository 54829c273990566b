"""A linear lens that learns from use: what is added, by how many, what a lens makes of it, and what is left alone."""

from __future__ import annotations

import logging
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from invert_fast import Inverter
from invert_fast.lens import choose_lens, forget, sharpen, sums_store
from invert_fast.lens.linear import LinearLens
from invert_fast.lens.normal_equations import NormalEquations
from invert_fast.lens.sharpen import Sharpener, sharpener_of, solved_again
from invert_fast.lens.sums_store import SWITCH, read_sums, sums_name, tokens_used
from invert_fast.strategies.speculative import Speculative

from ..families import build, exact, texts

LENGTHS = (12, 1, 30, 7)
TOKENS = sum(LENGTHS) - len(LENGTHS)  # position 0 teaches nothing


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A cache folder in which there is a linear lens, as it was fitted, and what it was solved from."""
    folder = tmp_path_factory.mktemp("fitted")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INVERT_FAST_CACHE", str(folder))
        patch.setenv(SWITCH, "on")
        patch.setattr(sums_store, "_GOOD", 1.1)
        inv = Inverter(build("gpt2"))
        inv.calibrate()
        choose_lens(inv.decoder, inv.vocabulary, "linear")
    return folder


@pytest.fixture
def used(monkeypatch, tmp_path, fitted):
    """An inverter with such a folder of its own, whose lens learns from the first token."""
    shutil.copytree(fitted, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("INVERT_FAST_CACHE", str(tmp_path))
    monkeypatch.setenv(SWITCH, "on")
    monkeypatch.setattr(sharpen, "_FIRST", TOKENS)
    monkeypatch.setattr(sharpen, "_FEWEST", 1)
    monkeypatch.setattr(sums_store, "_GOOD", 1.1)
    inv = Inverter(build("gpt2"))
    choose_lens(inv.decoder, inv.vocabulary, "linear")
    return inv


def sums_of(inv: Inverter) -> tuple[NormalEquations, int]:
    found = read_sums(inv.decoder, inv.vocabulary, 0)
    assert found is not None
    return found


def test_certified_tokens_are_added_to_what_the_lens_was_solved_from(used):
    before, none = sums_of(used)
    truth = texts(*LENGTHS)
    states = used.capture(truth)
    assert exact(used.invert(states, Speculative(lens="linear")), truth)
    after, count = sums_of(used)
    assert (none, count, after.count) == (0, TOKENS, before.count + TOKENS)
    expected = NormalEquations(before.rows, before.width, before.context)
    for ids, state in zip(truth, states, strict=True):
        rows = used.vocabulary.embedding[torch.tensor(ids)]
        expected.add(rows[1:], state.hidden[1:], state.hidden[:-1])
    scale = float(after.sums.abs().max())
    assert float((after.sums - before.sums - expected.sums).abs().max()) < 1e-6 * scale


def test_the_next_run_drafts_with_what_was_learned_and_so_does_the_next_process(used):
    first = choose_lens(used.decoder, used.vocabulary, "linear")
    assert isinstance(first, LinearLens)
    assert first.used == 0
    truth = texts(*LENGTHS)
    used.invert(used.capture(truth), Speculative(lens="linear"))
    sharper = choose_lens(used.decoder, used.vocabulary, "linear")
    assert isinstance(sharper, LinearLens)
    assert sharper.used == TOKENS
    assert not torch.equal(sharper.parts["rest"].project, first.parts["rest"].project)
    for name in ("first", "change"):
        assert torch.equal(sharper.parts[name].project, first.parts[name].project)
    solved = sums_of(used)[0].solve()
    torch.testing.assert_close(sharper.parts["rest"].project, solved[0])
    other = Inverter(build("gpt2"))
    read = choose_lens(other.decoder, other.vocabulary, "linear")
    assert isinstance(read, LinearLens)
    assert read.used == TOKENS
    assert torch.equal(read.parts["rest"].project, sharper.parts["rest"].project)
    assert exact(other.invert(other.capture(truth), Speculative(lens="linear")), truth)
    # solved again only once use has doubled
    assert choose_lens(other.decoder, other.vocabulary, "linear").used == 2 * TOKENS


def test_a_lens_is_sharpened_while_a_run_goes_on(used, monkeypatch):
    """One lane: each text is drafted after the one before it was learned from."""
    monkeypatch.setattr(sharpen, "_FIRST", 8)
    monkeypatch.setattr(sharpen, "_AT_ONCE", 8)
    seen = []
    real = solved_again
    monkeypatch.setattr(sharpen, "solved_again", lambda lens, sums, used: seen.append(used) or real(lens, sums, used))
    truth = texts(12, 12, 12, 12, 12)
    assert exact(used.invert(used.capture(truth), Speculative(lens="linear"), batch_size=1), truth)
    assert seen == [11, 22, 44]


@pytest.mark.parametrize("listed", [False, True])
def test_lanes_that_were_drafted_with_the_lens_before_end_exact(used, monkeypatch, listed):
    """Two lanes of unlike lengths: the long text is in the middle of its repairs when the lens changes."""
    monkeypatch.setattr(sharpen, "_FIRST", 4)
    monkeypatch.setattr(sharpen, "_AT_ONCE", 4)
    if listed:
        monkeypatch.setattr("invert_fast.strategies.candidates.MANY_TOKENS", 1)
    truth = texts(30, 5, 5, 5, 5, 5, 5)
    assert exact(used.invert(used.capture(truth), Speculative(lens="linear"), batch_size=2), truth)


def test_what_was_finished_counts_when_the_reader_stops_early(used):
    truth = texts(12, 12)
    states = used.capture(truth)
    found = used.invert_iter(enumerate(states), Speculative(lens="linear"), lengths=[12, 12], batch_size=1)
    next(found)
    found.close()
    assert tokens_used(used.decoder, 0) == 11


def test_those_who_add_at_once_lose_nothing(used):
    lens = choose_lens(used.decoder, used.vocabulary, "linear")
    before, _ = sums_of(used)
    ids = torch.arange(40)
    states = torch.randn(41, used.decoder.width, generator=torch.Generator().manual_seed(0))

    def add(_: int) -> None:
        other = Sharpener(used.decoder, used.vocabulary, 0)
        for _ in range(3):
            other.learn(ids, states[1:], states[:-1])
            other.keep()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add, range(4)))
    after, count = sums_of(used)
    assert (count, after.count) == (480, before.count + 480)
    one = NormalEquations(before.rows, before.width, before.context)
    one.add(used.vocabulary.embedding[used.vocabulary.representative[ids]], states[1:], states[:-1])
    assert float((after.sums - before.sums - 12 * one.sums).abs().max()) < 1e-5 * float(after.sums.abs().max())
    assert lens.used == 0


def test_too_few_tokens_are_kept_back(used, monkeypatch):
    """Sums over a handful of tokens would tell which they were."""
    monkeypatch.setattr(sharpen, "_FEWEST", TOKENS + 1)
    truth = texts(*LENGTHS)
    used.invert(used.capture(truth), Speculative(lens="linear"))
    assert tokens_used(used.decoder, 0) == 0
    used.invert(used.capture(truth), Speculative(lens="linear"))  # but not forgotten
    assert tokens_used(used.decoder, 0) == 2 * TOKENS


def test_switched_off_nothing_is_kept(used, monkeypatch):
    monkeypatch.setenv(SWITCH, "off")
    truth = texts(*LENGTHS)
    used.invert(used.capture(truth), Speculative(lens="linear"))
    assert tokens_used(used.decoder, 0) == 0
    assert sharpener_of(used.decoder, used.vocabulary, choose_lens(used.decoder, used.vocabulary, "linear"), 0) is None


def test_a_lens_that_has_little_to_gain_is_left_as_it_is(used, monkeypatch):
    monkeypatch.setattr(sums_store, "_GOOD", 0.0)
    truth = texts(*LENGTHS)
    used.invert(used.capture(truth), Speculative(lens="linear"))
    assert tokens_used(used.decoder, 0) == 0


def test_enough_is_enough(used, monkeypatch):
    monkeypatch.setattr(sharpen, "_ENOUGH", TOKENS / used.decoder.width)
    truth = texts(*LENGTHS)
    for _ in range(2):
        used.invert(used.capture(truth), Speculative(lens="linear"))
    assert tokens_used(used.decoder, 0) == TOKENS


def test_sums_that_make_no_sense_are_told_of_and_leave_the_lens(used, monkeypatch, caplog):
    """Finite, and yet without a solution, or with one that is not."""
    truth = texts(*LENGTHS)
    used.invert(used.capture(truth), Speculative(lens="linear"))
    for solve in (lambda _: torch.linalg.inv(torch.zeros(2, 2)), lambda _: (torch.full((2, 2), torch.nan),) * 2):
        monkeypatch.setattr(NormalEquations, "solve", solve)
        forget(used.decoder)
        with caplog.at_level(logging.WARNING, logger="invert_fast"):
            assert exact(used.invert(used.capture(truth), Speculative(lens="linear")), truth)
        assert "cannot be solved" in caplog.text
        caplog.clear()
        lens = choose_lens(used.decoder, used.vocabulary, "linear")
        assert isinstance(lens, LinearLens)
        assert lens.used == 0


@pytest.mark.parametrize("damage", ["cut", "numbers", "gone"])
def test_damaged_sums_are_told_of_and_change_nothing(used, tmp_path, caplog, damage):
    path = tmp_path / sums_name(used.decoder, 0)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "numbers":
        whole = bytearray(path.read_bytes())
        whole[-4:] = b"\x00\x00\xc0\x7f"  # NaN
        path.write_bytes(bytes(whole))
    else:
        path.unlink()
    forget(used.decoder)
    truth = texts(*LENGTHS)
    with caplog.at_level(logging.WARNING, logger="invert_fast"):
        for _ in range(2):
            assert exact(used.invert(used.capture(truth), Speculative(lens="linear")), truth)
    lens = choose_lens(used.decoder, used.vocabulary, "linear")
    assert isinstance(lens, LinearLens)
    assert lens.used == 0
    assert ("nothing more" in caplog.text) == (damage != "gone")


def test_a_lens_that_is_fitted_again_has_learned_from_nothing(used):
    truth = texts(*LENGTHS)
    used.invert(used.capture(truth), Speculative(lens="linear"))
    used.fit("linear")
    assert tokens_used(used.decoder, 0) == 0
    lens = choose_lens(used.decoder, used.vocabulary, "linear")
    assert isinstance(lens, LinearLens)
    assert lens.used == 0
