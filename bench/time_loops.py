"""Time the published loops on given tokens and print JSON: what `invert-fast demo` runs for its speed-ups.

    echo '{"model": "bundled", "sipit": [[464, 290]], "paper loop": [[464]]}' | python bench/time_loops.py

The package never imports these loops: it starts this file where it lies beside it, as in a checkout of the source.
Prints `{"sipit": seconds a token, "paper loop": seconds a token}`; fails when a loop does not recover its tokens.
"""

import json
import sys

import torch
from baselines import continuous_loop, sipit
from baselines.common import capture

from invert_fast.model import load


def main() -> None:
    given = json.load(sys.stdin)
    model, _ = load(given["model"])
    loops = {
        "sipit": lambda ids: sipit.invert(model, capture(model, ids, prefix_by_prefix=True)),
        "paper loop": lambda ids: continuous_loop.invert(model, capture(model, ids), preset="baseline"),
    }
    torch.set_num_threads(given.get("threads", torch.get_num_threads()))
    seconds = {}
    for name, invert in loops.items():
        results = [(ids, invert(ids)) for ids in given[name]]
        wrong = [ids for ids, result in results if result.token_ids != ids]
        if wrong:
            raise SystemExit(f"{name} did not recover {wrong}: its time says nothing")
        seconds[name] = sum(r.seconds for _, r in results) / sum(len(ids) for ids, _ in results)
    print(json.dumps(seconds))


if __name__ == "__main__":
    main()
