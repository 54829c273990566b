"""Try to have a wrong token certified: tens of thousands of tokens, in every precision that states come in.

    python bench/certify_campaign.py [--model NAME …] [--tokens N] [--output FILE.md] [--json FILE.json]

Two kinds of drafts are put to the engine. `own`: what the package drafts itself. `hostile`: the truth, with one token
in five replaced by the one whose row in the embedding is nearest to it, or one of the next; what is refused is then
mended with the truth, so that all that is wrong in the end was certified wrongly. Texts are of C4 (where it is at
hand), of random tokens, and long. Precisions: fp32; a bf16 and an fp16 forward pass; bf16 storage of fp32 states;
states of a bf16 pass handed over as fp32, without a word; states of a model whose weights are rounded to int8.

The table says how many tokens were certified, how many of them wrongly (which ends the run with an error), the share
certified, forward tokens a token, and the largest error bound given. --json: what docs/certificates.md plots.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from workloads import random_rows, real_rows

from invert_fast import Inverter, States, Status
from invert_fast.engine.protocol import Block, Context, Run
from invert_fast.engine.tolerances import deviations
from invert_fast.model.decoder import capture
from invert_fast.model.numerics import model_in

# name → precision of the pass, of the storage, and what is told of it (None: nothing)
PRECISIONS = {
    "fp32": ("float32", torch.float32, "float32"),
    "bf16 pass": ("bfloat16", torch.bfloat16, "bfloat16"),
    "bf16 storage": ("float32", torch.bfloat16, "float32"),
    "fp16 pass": ("float16", torch.float16, "float16"),
    "bf16 pass as fp32": ("bfloat16", torch.float32, None),
    "int8 weights": ("int8", torch.float32, "int8"),
}
_LENGTH, _LONG, _SWAPPED, _NEXT = 32, 256, 0.2, 4
_AT_ONCE = 2048  # tokens captured at once


@dataclass(frozen=True)
class Hostile:
    """Drafts the ids it was given, text by text; then, where one was refused, the truth."""

    drafts: Sequence[Sequence[int]]
    truth: Sequence[Sequence[int]]
    name: str = "hostile"

    def bind(self, context: Context) -> "Hostile.Proposer":
        return self.Proposer(self, context)

    @dataclass
    class Proposer:
        settings: "Hostile"
        context: Context

        def begin(self, slots: Tensor) -> None: ...

        def propose(self, slots: Tensor) -> list[Run | Block]:
            lanes, tries, items = self.context.lanes, self.context.attempts.tries, []
            fresh = slots[tries[slots] == 0]
            if len(fresh):
                rows = [self.settings.drafts[int(lanes.text[s])][int(lanes.length[s]) :] for s in fresh]
                counts = torch.tensor([len(row) for row in rows])
                ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
                items.append(Run(fresh, ids, counts))
            again = slots[tries[slots] > 0]
            true = torch.tensor([self.settings.truth[int(lanes.text[s])][int(lanes.length[s])] for s in again])
            left = ~self.context.attempts.tried[again, true.long()] if len(again) else again.bool()
            if bool(left.any()):
                items.append(Block(again[left], true[left][:, None]))
            return items


@dataclass
class Tally:
    """What came out for one model and precision."""

    tokens: int = 0
    right: int = 0
    certified: int = 0
    wrong: int = 0
    forward: int = 0
    error: float = 0.0
    figures: dict[str, list[float]] = field(default_factory=dict)

    def add(self, found, rows) -> None:
        for recovery, row in zip(found, rows, strict=True):
            right, certified = recovery.token_ids == np.array(row), recovery.status == Status.CERTIFIED
            self.tokens += len(row)
            self.right += int(right.sum())
            self.certified += int(certified.sum())
            self.wrong += int((certified & ~right).sum())
            self.forward += recovery.cost.forward_tokens
            if certified.any():
                self.error = max(self.error, float(recovery.error_bound[certified].max()))


def texts_of(inverter: Inverter, tokens: int) -> list[list[int]]:
    """Rows of C4, of random tokens (half as many), and a few long ones: about `tokens` in all."""
    opening = inverter.decoder.encode("", special=True) if inverter.decoder.tokenizer is not None else []
    short = int(0.85 * tokens) // _LENGTH
    rows = real_rows(inverter, short * 2 // 3, _LENGTH)[0] + random_rows(inverter, short - short * 2 // 3, _LENGTH)
    long = min(_LONG, inverter.decoder.max_length)
    rows += real_rows(inverter, int(0.15 * tokens) // long, long)[0]
    return [[*opening, *row][: inverter.decoder.max_length] for row in rows]


def states_of(inverter: Inverter, rows: list[list[int]], precision: str) -> Iterator[States]:
    """As somebody else's machine would have captured them."""
    computed, stored, told = PRECISIONS[precision]
    decoder = inverter.decoder
    model = decoder.model if computed == "float32" else model_in(decoder.model, computed)
    for row in rows:
        hidden = capture(model, decoder.layer, torch.tensor([row]))[0]
        yield States(hidden.to(stored), decoder.layer.name, compute_dtype=told or "")


def hostile_drafts(inverter: Inverter, rows: list[list[int]], seed: int = 0) -> list[list[int]]:
    """One token in five replaced by one of the nearest rows to it."""
    generator, vocabulary, out = torch.Generator().manual_seed(seed), inverter.vocabulary, []
    for row in rows:
        ids = torch.tensor(row)
        near = vocabulary.neighbours.of(ids)[0]
        which = (torch.rand(len(ids), generator=generator) ** 2 * _NEXT).long()  # the nearest most often
        other = near.gather(1, which[:, None])[:, 0]
        swap = (torch.rand(len(ids), generator=generator) < _SWAPPED) & (other >= 0)
        out.append(torch.where(swap, other, ids).tolist())
    return out


def distances(inverter: Inverter, states: list[States], rows: list[list[int]]) -> dict[str, list[float]]:
    """At every position of some texts, in the metric of the noise: the residual of the true token; how far a rival has
    to be; what untried tokens were held to be away at least; and how far the nearest of eight rivals really is."""
    from invert_fast.model.lanes import Lanes

    vocabulary, decoder = inverter.vocabulary, inverter.decoder
    tolerances = inverter.calibrate(*states[0].precision())
    z, found = deviations(int(vocabulary.allowed.sum())), {"true": [], "required": [], "bound": [], "rival": []}
    for state, row in zip(states, rows, strict=True):
        ids, target = torch.tensor(row), state.hidden.float()
        lanes, slot = Lanes(decoder, 1, len(row) + 1), torch.zeros(1, dtype=torch.long)
        lanes.target_length[:] = len(row) + 1
        hidden, position = lanes.draft(slot, ids[None])[0].float(), torch.arange(len(row))
        lanes.commit(slot, ids[None], slot + len(row), slot)
        residual = tolerances.row_residuals(hidden[None], target[None], position[None])[1][0]
        at, at_once = tolerances.at(position), max(1, _AT_ONCE // 8)
        near = vocabulary.neighbours.of(ids)[0][:, :8].clamp_min(0)
        for part in position.split(at_once):
            states_there = lanes.fan_out_at(slot.expand(len(part)), part, near[part])
            away = tolerances.residuals(states_there, hidden[part], part[:, None])[1]
            found["rival"] += away.masked_fill(near[part] == ids[part, None], torch.inf).amin(-1).tolist()
        found["true"] += residual.tolist()
        found["required"] += at.required(residual, z).tolist()
        found["bound"] += at.bound(vocabulary.separation_of(ids), residual).tolist()
    return found


@torch.no_grad()
def campaign(inverter: Inverter, precision: str, tokens: int, drafts: str) -> Tally | None:
    tally, rows = Tally(), texts_of(inverter, tokens)
    captured = states_of(inverter, rows, precision)
    states = list(tqdm(captured, total=len(rows), desc="capture", leave=False, disable=None))
    if not all(bool(s.hidden.isfinite().all()) for s in states):  # fp16 is too narrow for some models
        return None
    strategy = "auto" if drafts == "own" else Hostile(hostile_drafts(inverter, rows), rows)
    tally.add(inverter.invert(states, strategy), rows)
    if drafts == "hostile":
        few = [i for i, row in enumerate(rows) if len(row) <= _LENGTH + 1][:: max(1, len(rows) // 24)]
        tally.figures = distances(inverter, [states[i] for i in few], [rows[i] for i in few])
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", help="bundled, or a folder (several times for several)")
    parser.add_argument("--tokens", type=int, default=24_000, help="tokens a precision and kind of draft")
    parser.add_argument("--drafts", nargs="+", choices=("own", "hostile"), default=["own", "hostile"])
    parser.add_argument("--output", type=Path, help="the table, as Markdown")
    parser.add_argument("--json", type=Path, help="the distances, for bench/plot_certificates.py")
    args = parser.parse_args()
    head = ("model", "precision", "drafts", "tokens", "certified", "wrong", "share", "forward/token", "largest error")
    table, figures, wrong = [head, ("-",) * len(head)], {}, 0
    for name in args.model or ["bundled"]:
        inverter = Inverter.from_pretrained(name)
        for precision in PRECISIONS:
            for drafts in args.drafts:
                tally = campaign(inverter, precision, args.tokens, drafts)
                if tally is None:
                    print(f"{Path(name).name}, {precision}: the states overflow, left out", flush=True)
                    continue
                row = (
                    *(
                        Path(name).name,
                        precision,
                        drafts,
                        f"{tally.tokens:,}",
                        f"{tally.certified:,}",
                        str(tally.wrong),
                    ),
                    *(f"{tally.certified / tally.tokens:.2%}", f"{tally.forward / tally.tokens:.2f}"),
                    f"{tally.error:.0e}",
                )
                print("  ".join(f"{cell:>14}" for cell in row), flush=True)
                table.append(row)
                wrong += tally.wrong
                if tally.figures:
                    figures[f"{Path(name).name}, {precision}"] = tally.figures
    if args.output:
        args.output.write_text("\n".join(f"| {' | '.join(row)} |" for row in table) + "\n", encoding="utf-8")
    if args.json:
        args.json.write_text(json.dumps(figures), encoding="utf-8")
    return 1 if wrong else 0


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main())
