"""`invert-fast logits extract`: the next-token log-probs behind an API, as a file that the other commands read."""

from __future__ import annotations

import argparse
import logging
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from ..extract.settings import DIALECTS, KEY_VARIABLE, NAMES, Endpoint, Restrictions, Settings
from ..storage.json_text import parse
from ..storage.prompts import read_prompts
from ..types import InputError
from .options import positive
from .terminal import say, say_json

if TYPE_CHECKING:
    from ..extract import Api, Client, Extraction

log = logging.getLogger("invert_fast")


def add(commands: argparse._SubParsersAction) -> None:
    """Declare the command and its options."""
    one = commands.add_parser(
        "extract",
        help="limited API → full next-token log-probs",
        description="Find out what an API gives (top-k log-probs, logit bias, argmax), and recover the log-probs of "
        f"all tokens with as few queries as that allows. A key is read from the environment ({KEY_VARIABLE}) only.",
    )
    where = one.add_mutually_exclusive_group(required=True)
    where.add_argument("--api", metavar="URL", help="OpenAI-compatible server, such as http://127.0.0.1:8080/v1")
    where.add_argument("--model", metavar="M", help="a model in this process: Hugging Face id, folder, or `bundled`")
    what = one.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt", metavar="TEXT", help="the text before the token")
    what.add_argument("--prompts", type=Path, metavar="FILE", help="prompts.txt (one a line) or .jsonl (`text`)")
    one.add_argument("--output", type=Path, required=True, metavar="FILE", help="log_probs.safetensors to write")
    one.add_argument("--method", choices=NAMES, default="auto", help="default auto: the cheapest that works")
    one.add_argument("--budget", type=positive, metavar="N", help="most requests in all, probing and retries included")
    one.add_argument(
        "--precision", type=float, default=1e-3, metavar="ε", help="error to reach by bisection, nats (default 1e-3)"
    )
    one.add_argument("--per-query", type=positive, default=1024, metavar="N", help="most tokens biased in one request")
    one.add_argument("--parallel", type=positive, default=1, metavar="N", help="requests at once (default 1)")
    one.add_argument("--retries", type=positive, default=6, metavar="N", help="tries again after a failure (default 6)")
    one.add_argument("--resume", action="store_true", help="go on from OUTPUT.progress.jsonl")
    one.add_argument("--overwrite", action="store_true", help="replace an existing output")
    one.add_argument(
        "--unembedding", metavar="M", help="the model behind the API, if known: D + 64 tokens are then enough"
    )
    one.add_argument("--limit", type=positive, metavar="P", help="only the first P prompts")
    one.add_argument("--json", action="store_true", help="print a summary as JSON")
    server = one.add_argument_group("with --api")
    server.add_argument("--served-model", metavar="NAME", help="its name there (default: the first it lists)")
    server.add_argument("--chat", action="store_true", help="chat completions: the prompt is the user's message")
    server.add_argument("--system", metavar="TEXT", help="a system message before it")
    server.add_argument("--tokenizer", metavar="M", help="the model's tokenizer, where tokens come back as text")
    server.add_argument("--vocab-size", type=positive, metavar="V", help="where the server does not tell")
    server.add_argument("--dialect", choices=DIALECTS, default="auto", help="llama.cpp can tell log-probs after bias")
    server.add_argument("--extra", type=_object, default={}, metavar="JSON", help="further fields of every request")
    server.add_argument("--key-env", default=KEY_VARIABLE, metavar="NAME", help=f"default {KEY_VARIABLE}")
    server.add_argument("--timeout", type=float, default=120.0, metavar="S", help="seconds an answer may take")
    local = one.add_argument_group("with --model")
    local.add_argument(
        "--simulate",
        type=_restrictions,
        default=Restrictions(),
        metavar="JSON",
        help='what the API withholds, such as \'{"top": 5, "bias_limit": 100}\'',
    )
    local.add_argument("--special-tokens", action="store_true", help="let the tokenizer add its own (such as a BOS)")
    one.set_defaults(command=_extract)


def _object(text: str) -> dict:
    try:
        value = parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"'{text}' is no JSON ({error})") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"'{text}' is no JSON object, expected such as '{{\"seed\": 1}}'")
    return value


def _restrictions(text: str) -> Restrictions:
    value, names = _object(text), [field.name for field in fields(Restrictions)]
    unknown = value.keys() - set(names)
    if unknown:
        raise argparse.ArgumentTypeError(f"'{min(unknown)}' is unknown, expected some of {', '.join(names)}")
    return Restrictions(**value)


def _api(args: argparse.Namespace) -> Api:
    from ..extract import HttpApi, LocalApi, TokenNames
    from ..inverter import Inverter

    if args.model:
        return LocalApi(Inverter.from_pretrained(args.model), args.simulate, special=args.special_tokens)
    names = None
    if args.tokenizer:
        inverter = Inverter.from_pretrained(args.tokenizer, device="cpu")
        names = TokenNames.of(inverter.decoder.tokenizer, args.vocab_size or inverter.decoder.vocab_size)
    endpoint = Endpoint(
        args.api, args.served_model, args.chat, args.system, args.dialect, args.extra, args.vocab_size, args.key_env,
        args.timeout,
    )  # fmt: skip
    return HttpApi(endpoint, names)


def _extract(args: argparse.Namespace) -> int:
    kept = args.output.with_name(args.output.name + ".progress.jsonl")
    if args.output.exists() and not (args.overwrite or args.resume):
        raise InputError(f"{args.output} exists, expected a new file: give another --output, or --overwrite")
    if kept.exists() and not args.resume:
        raise InputError(f"{kept} is there from a run that did not end: --resume goes on with it, or delete it")
    prompts = [args.prompt] if args.prompt is not None else read_prompts(args.prompts, args.limit)
    settings = Settings(args.method, args.precision, args.per_query)
    from ..extract import Client, HttpApi, LocalApi, Patience, Progress, extract, image_of
    from ..extract.output import write
    from ..inverter import Inverter

    api = _api(args)
    known = Inverter.from_pretrained(args.unembedding) if args.unembedding else None
    image = image_of(known) if known else None
    if known is None and isinstance(api, LocalApi):
        known = api
    progress = Progress(kept, api.name, api.vocab_size)
    client = Client(api, budget=args.budget, parallel=args.parallel, patience=Patience(retries=args.retries))
    found: list[Extraction | None] = []
    try:
        for index, prompt in enumerate(prompts):
            if args.budget is not None and client.spent >= args.budget:
                found.append(None)
                continue
            one = extract(client, prompt, settings, image=image, progress=progress, index=index)
            log.info("prompt %d: %s; %s", index, one.capabilities.describe(), _line(one))
            found.append(one)
    finally:
        progress.close()
        if isinstance(api, HttpApi):
            api.close()
    complete = sum(each is not None and each.complete for each in found)
    write(args.output, found, api.name, known.decoder.fingerprint() if known else None)
    if complete == len(prompts):
        kept.unlink()
    summary = _summary(found, api.vocab_size, client)
    if args.json:
        say_json(summary)
    else:
        stated = "–" if summary["stated_error"] is None else f"{summary['stated_error']:.2g} nats"
        say(
            f"{complete} of {len(prompts)} prompts complete, {client.spent} queries "
            f"({summary['queries_per_token']} a token, theory {summary['theory_per_token']}), stated error {stated} → "
            f"{args.output}"
        )
    return 0 if complete == len(prompts) else 1


def _line(one: Extraction) -> str:
    text = f"{one.method}, {one.queries} queries, {len(one.known)} tokens known to {one.bound:.2g} nats"
    return text + (f"; {one.stopped}" if one.stopped else "")


def _summary(found: list[Extraction | None], size: int, client: Client) -> dict:
    done = [each for each in found if each is not None]
    spent, tokens = sum(e.queries - e.probe_queries for e in done), max(1, size * len(done))
    theory = sum(e.theory for e in done) / tokens
    return {
        "prompts": len(found),
        "complete": sum(e.complete for e in done),
        "methods": sorted({e.method for e in done}),
        "queries": client.spent,
        "retried": client.retried,
        "probe_queries": sum(e.probe_queries for e in done),
        "queries_per_token": round(spent / tokens, 4),
        "theory_per_token": round(theory, 4) if theory < float("inf") else None,
        "tokens_known": min((len(e.known) for e in done), default=0),
        "normalised": all(e.normalised for e in done),
        "stated_error": max((e.bound for e in done), default=None),
        "misfit": max((e.misfit for e in done if e.misfit is not None), default=None),
        "stopped": [e.stopped for e in done if e.stopped],
    }
