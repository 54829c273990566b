"""What a package of your own can add: strategies, lenses, op backends. Here are the protocols, and what they work with.

* A `Strategy` says which tokens might stand at a position: by an entry point of the group `invert_fast.strategies`, or
  `Inverter.invert(states, strategy)`.
* A `Lens` drafts whole texts from states: `invert_fast.lenses`, or `auto(lens)` and `Speculative(lens=…)` as strategy.
* A `Backend` computes ops in another way: `invert_fast.backends`; either is used within `using(backend)` alone.

None of them says what is certified. A strategy and a lens propose, and the engine verifies; it refuses a strategy that
writes to what a verdict rests on. An op is held to its reference before it is used, and what measures how near a state
came is always our own. All of it is Python in your process: this guards against mistakes, not against malice.

Of the `Context` that a strategy gets, these are promised beside what is listed here: `decoder.device`,
`decoder.width`, `decoder.embed(ids)` and `decoder.capture(ids)`; `vocabulary.size`, `vocabulary.allowed` and
`vocabulary.embedding[ids]`; `lanes.slots`, `lanes.max_len`, `lanes.targets`, `lanes.target_length`, `lanes.ids`,
`lanes.length`, `lanes.target(slots)` and `lanes.fan_out(slots, ids)`; `attempts.tried`, `attempts.tried_there`,
`attempts.tries`, `attempts.near_ids`, `attempts.near_state` and `attempts.failed`.

On a GPU, slots, lengths, tokens and what was tried are on the host all the same. Beside the model are what `lanes`
gives of states, `lanes.targets`, `attempts.near_state`, what `vocabulary` has of all tokens, and a copy of what was
tried, `attempts.tried_there`, for scores that are made there. What is proposed may be made on either.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import exporting

if TYPE_CHECKING:
    from ..engine.protocol import Behind, Block, Context, Learner, Observer, Proposer, Run, Strategy, Working
    from ..lens.base import Lens
    from ..lens.estimate import EstimateLens
    from ..lens.outside import LensMaker
    from ..lens.prior import DraftPrior
    from ..lens.repair import Repair
    from ..ops.outside import Backend, using
    from ..strategies.auto import auto
    from ..strategies.blocks import Ranked, growing_blocks

__all__ = [
    "Backend",
    "Behind",
    "Block",
    "Context",
    "DraftPrior",
    "EstimateLens",
    "Learner",
    "Lens",
    "LensMaker",
    "Observer",
    "Proposer",
    "Ranked",
    "Repair",
    "Run",
    "Strategy",
    "Working",
    "auto",
    "growing_blocks",
    "using",
]

_PLACES = {
    "engine.protocol": ("Behind", "Block", "Context", "Learner", "Observer", "Proposer", "Run", "Strategy", "Working"),
    "lens.base": ("Lens",),
    "lens.estimate": ("EstimateLens",),
    "lens.outside": ("LensMaker",),
    "lens.prior": ("DraftPrior",),
    "lens.repair": ("Repair",),
    "ops.outside": ("Backend", "using"),
    "strategies.auto": ("auto",),
    "strategies.blocks": ("Ranked", "growing_blocks"),
}
__getattr__ = exporting(__name__, {name: f"invert_fast.{home}" for home, names in _PLACES.items() for name in names})
