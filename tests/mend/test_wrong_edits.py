"""Whatever was done to the rows, and whatever it is taken for: no token is certified that did not stand there."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module

import pytest
import torch

from invert_fast import InputError, States
from invert_fast.cli.mend import EDITS as OFFERED
from invert_fast.diagnose.hypotheses import EDITS as NAMED
from invert_fast.lens import LinearLens
from invert_fast.mend.mending import EDITS as EDITS_TOLD

from ..adversary import SMALL
from ..small_fits import shrink
from .edits import EDITS, LENGTH, edited, judge, small

pytestmark = pytest.mark.numeric


@pytest.fixture(scope="module", autouse=True)
def quick_lenses(tmp_path_factory) -> Iterator[None]:
    """Fits of a second: how good a draft is, is not asked here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INVERT_FAST_CACHE", str(tmp_path_factory.mktemp("lenses")))
        shrink(patch)
        yield


DROPPED = {"one row dropped": (5, 6), "two rows dropped": (5, 7), "the last but one dropped": (LENGTH - 2, LENGTH - 1)}
RIGHT = {  # taken for what it is: (as, at least so many certified)
    ("shuffled", "order"): LENGTH,
    ("two rows swapped", "order"): LENGTH,
    ("one row dropped", "gap"): LENGTH,
    ("the first dropped", "front"): LENGTH - 1,
    ("two texts in turns", "mixed"): 2 * LENGTH,
    ("two texts in a row", "mixed"): 2 * LENGTH,
    ("one vector on all rows", "steering"): LENGTH,
    **{("nothing", edit): LENGTH for edit in ("order", "gap", "mixed", "steering")},
}


@pytest.mark.parametrize("edit", ["gap", "order", "steering", "mixed"])
@pytest.mark.parametrize("name", EDITS)
def test_nothing_wrong_is_certified(name, edit):
    inverter = small("gpt2", 1)
    made = edited(name, inverter, seed=len(name))
    found = inverter.mend(made.rows, edit)
    whole = edited("nothing", inverter, seed=len(name)).truth
    start, stop = DROPPED.get(name, (0, 0))
    sure = judge(found, made.truth, whole[start:stop])
    assert sure >= RIGHT.get((name, edit), 0)
    if edit != "gap":  # each row is accounted for, once
        assert sorted(row for one in found for row in one.mended.rows) == list(range(len(made.rows)))
    assert all(one.cost.forward_tokens >= len(one.token_ids) for one in found if one.certified)


@pytest.mark.parametrize("name", ["the first dropped", "shuffled", "one row dropped"])
def test_nothing_wrong_is_certified_behind_a_front(name):
    inverter = small("gpt2", 1)
    made = edited(name, inverter, seed=3)
    assert judge(inverter.mend(made.rows, "front"), made.truth) >= RIGHT.get((name, "front"), 0)


@pytest.mark.parametrize(
    ("name", "edit"),
    [
        ("shuffled", "order"),
        ("two texts in turns", "mixed"),
        ("one row dropped", "gap"),
        ("two rows dropped", "gap"),
        ("one vector on all rows", "steering"),
        ("a vector on each row", "steering"),
        ("two texts shuffled", "order"),
    ],
)
def test_nothing_wrong_is_certified_of_coarse_states(name, edit):
    inverter = small("llama", 2)
    made = edited(name, inverter, seed=1)
    whole = edited("nothing", inverter, seed=1).truth
    start, stop = DROPPED.get(name, (0, 0))
    states = States(made.rows.bfloat16(), 2, "bfloat16", "float32")
    found = inverter.mend(states, edit)
    sure = judge(found, made.truth, whole[start:stop])
    if (name, edit) in (("shuffled", "order"), ("two texts in turns", "mixed")):
        assert sure == len(made.rows)


@pytest.mark.parametrize("layer", [1, 2])
@pytest.mark.parametrize(("name", "edit"), RIGHT)
def test_a_large_vocabulary_is_mended_as_well(name, edit, layer, monkeypatch):
    """Where what a lens reads off rows are short lists."""
    inverter = small("gpt2", layer)
    for room in ("mend.asked", "mend.order", "mend.work", "strategies.candidates"):
        monkeypatch.setattr(import_module(f"invert_fast.{room}"), "MANY_TOKENS", 1)
    made = edited(name, inverter, seed=1)
    whole = edited("nothing", inverter, seed=1).truth
    start, stop = DROPPED.get(name, (0, 0))
    assert judge(inverter.mend(made.rows, edit), made.truth, whole[start:stop]) >= RIGHT[name, edit]


@pytest.mark.parametrize("edit", ["order", "mixed", "gap"])
def test_tokens_that_no_list_has_are_found_beyond_them(edit, monkeypatch):
    """The lens of a large vocabulary lists a few tokens, and not those of this text."""
    inverter = small("gpt2", 2)
    for room in ("mend.asked", "mend.order", "mend.work", "strategies.candidates"):
        monkeypatch.setattr(import_module(f"invert_fast.{room}"), "MANY_TOKENS", 1)
    made = edited("shuffled" if edit == "order" else "nothing", inverter, seed=1)
    others = torch.tensor([i for i in range(3, SMALL["vocab"]) if i not in made.truth][:8])
    for name in ("lists", "row_lists"):
        own = getattr(LinearLens, name)

        def blind(self, proxies, own=own):
            ids, scores = own(self, proxies)
            return others.expand(*ids.shape[:-1], -1).clone(), scores[..., : len(others)].clone()

        monkeypatch.setattr(LinearLens, name, blind)
    assert judge(inverter.mend(made.rows, edit), made.truth) == LENGTH


def test_one_row_behind_a_gap_of_two_certifies_nothing():
    inverter = small("gpt2", 1)
    made = edited("nothing", inverter, seed=3)
    rows = made.rows.clone()
    rows[LENGTH - 3 : LENGTH - 1] = torch.nan
    (found,) = inverter.mend(rows, "gap")
    assert judge([found], made.truth, made.truth[LENGTH - 3 : LENGTH - 1]) == LENGTH - 3
    (found,) = inverter.mend(
        torch.cat([rows[: LENGTH - 2], made.rows[LENGTH - 2 :]]), "gap"
    )  # a gap of one, two behind
    assert judge([found], made.truth, made.truth[LENGTH - 3 : LENGTH - 2]) == LENGTH


def test_what_does_not_go_together_is_refused():
    inverter = small("gpt2", 1)
    rows = edited("nothing", inverter).rows
    gone = rows.clone()
    gone[3] = torch.nan
    for edit, options, states, words in (
        ("shuffle", {}, rows, "expected one of gap, front, order, steering, mixed"),
        ("order", {"missing": (3,)}, rows, "missing was given with edit 'order', expected with 'gap' alone"),
        ("gap", {"direction": rows[0]}, rows, "direction was given with edit 'gap'"),
        ("gap", {"missing": (99,)}, rows, "expected 0 to 12"),
        ("order", {}, gone, "row 3 is NaN, Inf or zero throughout"),
        ("gap", {}, 0 * rows, "all 12 rows are missing"),
        ("steering", {}, rows[:3], "expected 4 or more"),
        ("steering", {"direction": rows[0, :5]}, rows, "expected 32"),
        ("order", {}, rows[:, :8], "states are 8 wide"),
    ):
        with pytest.raises(InputError, match=words):
            inverter.mend(states, edit, **options)


def test_every_edit_is_known_everywhere():
    assert set(EDITS_TOLD) == set(OFFERED) == set(NAMED)


def test_a_text_without_rows_stays_one():
    (found,) = small("gpt2", 1).mend(torch.zeros(0, 32), "order")
    assert len(found.token_ids) == 0
