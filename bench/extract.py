"""Queries a token beside the theoretical number, for every method: `python bench/extract.py [--server] [--json FILE]`.

Each row is checked against the model's own log-probs before it is printed: a stated bound that does not hold ends the
run. With --server the same through a real llama.cpp server that serves the bundled model (needs xllamacpp and gguf).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from invert_fast import Inverter
from invert_fast.cli.report import table
from invert_fast.extract import (
    Client,
    Endpoint,
    HttpApi,
    LocalApi,
    Query,
    Restrictions,
    Settings,
    TokenNames,
    extract,
    image_of,
)

PROMPT = "The mayor opened the bridge on"
HEAD = ["api", "method", "tokens", "queries", "queries/token", "theory/token", "probe", "error", "stated", "s"]


class Top:
    """A server that gives no more than so many log-probs."""

    def __init__(self, api: HttpApi, top: int):
        self.api, self.top = api, top
        self.name, self.vocab_size, self.names, self.untellable = api.name, api.vocab_size, api.names, api.untellable

    def ask(self, query: Query):
        return self.api.ask(replace(query, top=min(query.top, self.top)))


def row(
    label: str, api, settings: Settings, true: np.ndarray, slack: float = 0.0, image=None, parallel: int = 1
) -> dict:
    """One extraction, checked: `true [V]` log-probs, themselves known to `slack`."""
    start = time.perf_counter()
    found = extract(Client(api, parallel=parallel), PROMPT, settings, image=image)
    seconds = time.perf_counter() - start
    wanted = len(true) if settings.tokens is None else len(settings.tokens)
    off = np.abs(found.log_probs - (true if found.normalised else true - true.max()))[found.known]
    if not (off <= found.error[found.known] + slack).all():
        raise SystemExit(f"{label}: an error of {off.max():.3g} is above the bound that was stated")
    spent = found.queries - found.probe_queries
    return dict(
        zip(
            HEAD,
            [
                label,
                found.method,
                len(found.known),
                spent,
                round(spent / wanted, 4),
                round(found.theory / wanted, 4),
                found.probe_queries,
                float(off.max()),
                found.bound,
                round(seconds, 1),
            ],
            strict=True,
        )
    )


def simulated(inverter: Inverter) -> list[dict]:
    logits = LocalApi(inverter).logits(PROMPT).astype(np.float64)
    true = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
    image, every_16th = image_of(inverter), tuple(range(0, len(true), 16))
    cases = [
        ("all log-probs", Restrictions(), Settings(), None),
        ("top 20 after bias", Restrictions(top=20, bias_limit=100, refuse=True, bias_entries=300), Settings(), None),
        ("top 5 after bias", Restrictions(top=5), Settings(), None),
        ("top 1 after bias", Restrictions(top=1), Settings(), None),
        ("top 5 before bias", Restrictions(top=5, after_bias=False), Settings(), None),
        ("argmax", Restrictions(top=0), Settings(), None),
        ("argmax, 300 biases", Restrictions(top=0, bias_limit=100, bias_entries=300), Settings(), None),
        ("argmax, 1e-2", Restrictions(top=0), Settings(precision=1e-2), None),
        ("argmax, 1/16 of V", Restrictions(top=0), Settings("bisection", tokens=every_16th), None),
        ("top 5, unembedding", Restrictions(top=5), Settings(), image),
        ("argmax, unembedding", Restrictions(top=0), Settings(precision=5e-3), image),
    ]
    return [
        row(label, LocalApi(inverter, rules), settings, true, image=known)
        for label, rules, settings, known in tqdm(cases, desc="simulated")
    ]


def served(inverter: Inverter) -> list[dict]:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "extract"))
    import llama_server  # pyright: ignore[reportMissingImports]

    names = TokenNames.of(inverter.decoder.tokenizer, inverter.decoder.vocab_size)
    with tempfile.TemporaryDirectory() as folder, llama_server.serve(Path(folder)) as url:
        own = extract(Client(HttpApi(Endpoint(url, extra={"post_sampling_probs": False}))), PROMPT, bar=False)
        plain = Endpoint(url, dialect="openai", extra={"cache_prompt": False})
        cases = [
            ("llama-server", HttpApi(Endpoint(url)), Settings()),
            ("llama-server, top 20", Top(HttpApi(Endpoint(url)), 20), Settings()),
            ("llama-server, top 5", Top(HttpApi(Endpoint(url)), 5), Settings()),
            ("llama-server, top 5 before bias", Top(HttpApi(plain, names), 5), Settings()),
            ("llama-server, text only", Top(HttpApi(plain, names), 0), Settings(per_query=256)),
        ]
        return [
            row(label, api, settings, own.log_probs, own.bound) for label, api, settings in tqdm(cases, desc="served")
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--server", action="store_true", help="a real llama.cpp server instead of simulated limits")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows to this file as well")
    args = parser.parse_args()
    inverter = Inverter.from_pretrained("bundled", device="cpu")
    rows = served(inverter) if args.server else simulated(inverter)
    shown = [[f"{v:.1e}" if key in ("error", "stated") else str(v) for key, v in each.items()] for each in rows]
    print(table(HEAD, shown))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
