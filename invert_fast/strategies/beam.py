"""Noisy states: whole texts by the likelihood of the noise and the model's own prior, with a posterior for each token.

Where noise is as loud as tokens are apart, the nearest token is not always the right one. What follows then tells: a
wrong token changes all states behind it. So several hypotheses are kept of each text (`beam_search.py`), and
what is handed to the engine is the one of which most tokens are right by the posterior. docs/noise.md derives it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..engine.protocol import Block, Context, Run, Working
from ..lens.base import Lens
from ..lens.change import ChangeModel, change_model
from ..lens.choose import choose_lens
from ..lens.outside import LensMaker
from ..lens.prior import draft_lists
from ..model.transfer import picked, sent_one, told_one
from ..ops.best_two import LISTED, MANY_TOKENS
from ..storage.noise import GAUSSIAN, LAPLACIAN, Noise
from .beam_search import Search
from .blocks import growing_blocks
from .candidates import charge_ends
from .hypotheses import UNTRIED, Marginals
from .openings import openings_of

_TABLE = 1 << 23  # numbers in a table of all tokens for each hypothesis


@dataclass(frozen=True)
class Beam:
    """width: hypotheses of a text; candidates: tokens that are tried after each, at most; worth: share of the posterior
    that a token has to be expected to have to be tried; drop: a hypothesis so much less likely than the best one is
    given up (nats); prior: weight of the model's own log-probabilities (with 0 and a width of 1 the nearest token is
    taken at every step); at_once: texts side by side, at most; listed: of a large vocabulary, tokens looked at, those
    of the lens's list first, and as many of all others where none of these fits; tokens_per_call: of a pass, at most;
    block: candidates at once where none of these fits states without noise; lens, seed: as in `Speculative`.

    The noise is what `States.noise` says, else the rounding that was calibrated.
    """

    width: int = 8
    candidates: int = 128
    worth: float = 3e-4
    drop: float = 8.0
    prior: float = 1.0
    at_once: int = 16
    listed: int = 256
    tokens_per_call: int = 2048
    block: int = 1024
    lens: str | Lens | LensMaker = "auto"
    seed: int = 0
    name: str = "beam"

    def bind(self, context: Context) -> _Proposer:
        """See `Strategy`."""
        return _Proposer(self, context)


@dataclass(frozen=True)
class Rounded:
    """Noise as a search sees it. own: length of what rounding and passes add to it by themselves, over a state's."""

    noise: Noise | None
    own: float

    def deviation(self, state: Tensor) -> Tensor:
        """Of each number, had `state [..., D]` been the true one: `[...]`."""
        rounding = self.own * state.square().mean(-1).sqrt().clamp_min(1e-12)
        return rounding if self.noise is None else (self.noise.deviation(state).square() + rounding.square()).sqrt()

    def loudness(self, target: Tensor, state: Tensor) -> Tensor:
        """By how many of its deviations the squared length of `target [n, D]` less `state [n, D]` is above that of the
        noise: `[n]`."""
        square = ((target - state).double() / self.deviation(state).double()[..., None]).square().sum(-1)
        width, tails = target.shape[-1], 5.0 if self.noise is not None and self.noise.kind == LAPLACIAN else 2.0
        return (square - width) / (tails * width) ** 0.5

    def log_density(self, target: Tensor, state: Tensor) -> Tensor:
        """log p(`target [..., D]` | `state [..., D]`) without a constant: `[...]` fp64."""
        kind = Noise(GAUSSIAN, 1.0) if self.noise is None else self.noise
        return kind.log_density((target - state).double(), self.deviation(state).double())


@dataclass(frozen=True)
class Given:
    """What all searches of a proposer share. openings `[V, D]`: states of all first tokens; None of a large
    vocabulary."""

    noise: Rounded
    lens: Lens
    change: ChangeModel
    openings: Tensor | None


@dataclass
class _Texts:
    """A search of some lanes, and the rows of those that are still asked for."""

    search: Search
    row: dict[int, int] = field(default_factory=dict)


class _Proposer:
    def __init__(self, settings: Beam, context: Context):
        self.settings, self.context = settings, context
        decoder, vocabulary = context.decoder, context.vocabulary
        self.lens = choose_lens(decoder, vocabulary, settings.lens, context.states_dtype, settings.seed)
        tolerances = context.tolerances
        noise = Rounded(tolerances.level, max(tolerances.own))
        change = change_model(decoder, vocabulary, self.lens, settings.seed)
        openings = openings_of(decoder) if vocabulary.size < MANY_TOKENS else None
        self.given = Given(noise, self.lens, change, openings)
        lanes = context.lanes
        self.drafts = torch.zeros(lanes.slots, lanes.max_len, dtype=torch.long)
        self.lists: Tensor | None = None
        if vocabulary.size >= MANY_TOKENS:
            self.lists = torch.full(
                (lanes.slots, lanes.max_len, LISTED), UNTRIED, dtype=torch.int32, device=lanes.device
            )
        self.texts: _Texts | None = None
        self.found: dict[int, Marginals] = {}

    def begin(self, slots: Tensor) -> None:
        lanes = self.context.lanes
        longest = int(lanes.target_length[slots].max())
        if longest:
            at = sent_one(lanes.device, slots)
            hidden = lanes.targets[at, :longest]
            self.drafts[slots, :longest] = told_one(self._drafted(slots, at, hidden))
        self._forget(slots.tolist())

    def _drafted(self, slots: Tensor, at: Tensor, hidden: Tensor) -> Tensor:
        """Tokens `[b, T]` of texts `hidden [b, T, D]`, and their lists where there are any."""
        if self.lists is None:
            return self.lens.draft(hidden)
        found = draft_lists(self.context.decoder, self.lens, hidden)
        if found.ends is not None and not self.context.decoder.layer.near_head:
            charge_ends(self.context, slots)
        self.lists[at, : hidden.shape[1]] = found.ids.int()
        return found.ids[..., 0]

    def _forget(self, slots: list[int]) -> None:
        for slot in slots:
            self.found.pop(slot, None)
            self.context.posteriors.drop(slot)
            if self.texts is not None:
                self.texts.row.pop(slot, None)

    def propose(self, slots: Tensor) -> list[Run | Block | Working]:
        items: list[Run | Block | Working] = []
        again = self.context.attempts.tries[slots] > 0
        if bool(again.any()) and self.context.tolerances.level is None:
            # without noise something does fit: what the search left out is tried, nearest first by the lens
            items += self._more(slots[again])
        asking = slots[~again].tolist()
        ready = [slot for slot in asking if self._stands(slot)]
        waiting = [slot for slot in asking if slot not in self.found]
        items += self._runs(ready)
        if waiting:
            self._search(waiting)
            items.append(Working(slots.new_tensor(waiting)))
        return items

    def _more(self, slots: Tensor) -> list[Block]:
        lanes, attempts = self.context.lanes, self.context.attempts
        wrong = sent_one(lanes.device, attempts.near_ids[slots, 0].clamp_min(0))
        scores = self.lens.change_scores(lanes.target(slots), picked(attempts.near_state, slots), wrong)
        return growing_blocks(self.context, slots, scores, 16, 8, self.settings.block, "exhaustive")

    def _stands(self, slot: int) -> bool:
        """Whether what was found for a lane goes on from what is committed there; else it is forgotten."""
        found, length = self.found.get(slot), int(self.context.lanes.length[slot])
        if found is not None and found.ids[:length].tolist() == self.context.lanes.ids[slot, :length].tolist():
            return True
        self.found.pop(slot, None)
        return False

    def _runs(self, ready: list[int]) -> list[Run]:
        """What is left of the texts that were found in these lanes; those that have as many tokens left in one pass."""
        lanes, final = self.context.lanes, self.context.tolerances.level is not None
        rest: dict[int, list[tuple[int, Tensor]]] = {}
        for slot in ready:
            left = torch.from_numpy(self.found[slot].ids[int(lanes.length[slot]) :]).to(lanes.ids)
            rest.setdefault(len(left), []).append((slot, left))
        runs = []
        for count, texts in rest.items():
            slots = lanes.ids.new_tensor([slot for slot, _ in texts])
            runs.append(Run(slots, torch.stack([ids for _, ids in texts]), torch.full_like(slots, count), final))
        return runs

    def _search(self, waiting: list[int]) -> None:
        """A step of the search that goes on, or of a new one of lanes that wait."""
        if self.texts is None or not self.texts.row.keys() & set(waiting):
            most = _TABLE // (self.settings.width * self.context.vocabulary.size)
            slots = waiting[: max(1, min(self.settings.at_once, most))]
            lanes = self.context.lanes.length.new_tensor(slots)
            lists = None if self.lists is None else self.lists[sent_one(self.lists.device, lanes)]
            search = Search(self.settings, self.context, lanes, self.drafts[lanes], self.given, lists)
            self.texts = _Texts(search, {slot: row for row, slot in enumerate(slots)})
        search = self.texts.search
        search.step()
        done = search.done.tolist()
        for slot, row in [*self.texts.row.items()]:
            if done[row]:
                self.found[slot] = found = search.marginals(row)
                self.context.posteriors.add(slot, found.shares)
                del self.texts.row[slot]
        if not self.texts.row:
            self.texts = None
