"""A linear lens made better for a stated time: the sums that it is solved from take in more and more texts.

On models that run slowly the first fit makes do with a tenth of the tokens that a lens can use. Here the model reads
what is left of the package's pages, then writes more itself, half beside texts of the user's where there are any, until
the time is up; then the sums are solved again. What was summed is kept once a minute, so that a fit that is cut short
is gone on from by the next.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from ..model.decoder import Decoder
from ..model.samples import opening_of, page_ids
from ..model.vocabulary import Vocabulary
from ..storage import cache
from ..storage.checkpoint import step_seed
from ..types import InputError
from . import store
from .base import Lens
from .linear import LinearLens
from .linear_fit import add_texts, measure
from .mixture import Held, Mixture
from .normal_equations import NormalEquations
from .prior import draft_lists
from .settings import Fit, FitReport
from .sharpen import solved_again
from .sums_store import add_to_sums, learns, read_sums
from .texts import windows

log = logging.getLogger("invert_fast")

MINUTES = 15.0
_ROUND, _READ = 8192, 6144  # tokens of texts that are made at once, and of pages in them
_KEEP_SECONDS, _TO_SOLVE = 60.0, 0.05  # what is left of the time for solving and measuring
_TOP = 16


class Clock(tqdm):
    """Runs with the time, whatever is told of tokens."""

    def update(self, n: float | None = 1) -> bool | None:
        return super().update(round(min(self.total, self.format_dict["elapsed"])) - self.n)


@torch.no_grad()
def deepen_linear(
    decoder: Decoder, vocabulary: Vocabulary, fit: Fit | None = None, text: Sequence[Sequence[int]] = ()
) -> FitReport:
    """Give the linear lens of this model and layer `fit.minutes` (15) of more texts; it is kept if it then drafts more
    held-out tokens right. text: token ids of texts like those to be recovered; half of what is added is then theirs.

    Raises InputError where the cache folder keeps no sums, or the lens has nothing to gain.
    """
    fit, started = fit or Fit(), time.perf_counter()
    lens = store.linear_lens(decoder, vocabulary, fit.seed)
    if not learns(lens.accuracy):
        raise InputError(
            f"the linear lens drafts {lens.accuracy:.1%} right, or INVERT_FAST_SHARPEN is off: more texts would teach "
            "it nothing; leave out --minutes, or train the learned lens"
        )
    if read_sums(decoder, vocabulary, fit.seed) is None:  # of an older version, or thrown away
        lens = store.linear_lens(decoder, vocabulary, fit.seed, again=True)
    minutes = fit.minutes or MINUTES
    seconds = 60 * minutes
    log.info(
        "the linear lens of %s gets %g minutes of more texts (what it has by then is kept)", named(decoder), minutes
    )
    with Clock(total=round(seconds), desc="fit the lens", unit="s", leave=False) as bar:
        test = held_out(decoder, vocabulary, fit.seed, bar)
        before = right(decoder, lens, test)
        deeper, rounds = deepened(decoder, vocabulary, lens, fit, text, test, bar, started + seconds * (1 - _TO_SOLVE))
        if deeper is None:
            raise InputError(
                "a lens is made better from its sums, and the cache keeps none that can be solved: set "
                "INVERT_FAST_CACHE to a folder, or fit the lens again, without --minutes"
            )
    after = right(decoder, deeper, test)
    better = after[0] > before[0]
    if better:
        store.keep_linear(deeper, decoder, fit.seed)
    path = cache.path(store.linear_name(decoder, fit.seed))
    top1, top16, linear = ({"held out": round(share, 5)} for share in (*after, before[0]))
    kept = None if path is None else str(path)
    return FitReport(top1, top16, linear, rounds, time.perf_counter() - started, kept, deeper=True, better=better)


@torch.no_grad()
def deepened(
    decoder: Decoder,
    vocabulary: Vocabulary,
    lens: LinearLens,
    fit: Fit,
    text: Sequence[Sequence[int]],
    test: Held,
    bar: tqdm,
    until: float,
    also: Callable[[Tensor, Tensor], None] | None = None,
) -> tuple[LinearLens | None, int]:
    """The lens solved again with what texts until `until` (of `time.perf_counter`) add to its sums, and in how many
    rounds they came; no lens where no sums are kept. also: what else is told of these texts, `[b, T]`, and states."""
    found = read_sums(decoder, vocabulary, fit.seed) if learns(lens.accuracy) else None
    drawn = 0 if found is None else found[0].count  # other texts than those that are in them already
    sums = _fresh(decoder, vocabulary)
    rounds, kept = 0, time.perf_counter()
    for texts in _rounds(decoder, vocabulary, fit, text, bar, drawn, until):
        rounds += 1
        for ids, states in texts:
            if found is not None:
                add_texts(sums, vocabulary, ids, states)
            if also is not None:
                also(ids, states)
        if found is not None and time.perf_counter() - kept > _KEEP_SECONDS:
            add_to_sums(decoder, fit.seed, sums, of_use=False)
            sums, kept = _fresh(decoder, vocabulary), time.perf_counter()
    if sums.count:
        add_to_sums(decoder, fit.seed, sums, of_use=False)
    found = None if found is None else read_sums(decoder, vocabulary, fit.seed)
    if found is None:
        return None, rounds
    bar.set_description("fit the lens: solve")
    deeper = solved_again(lens, *found)
    if deeper is not None:
        measure(decoder, deeper, test)
    return deeper, rounds


def named(decoder: Decoder) -> str:
    """Model and layer, as messages name them."""
    return f"{decoder.fingerprint()}, {decoder.layer.name}"


def held_out(decoder: Decoder, vocabulary: Vocabulary, seed: int, bar: tqdm) -> Held:
    """The texts that the first fit held out, too, natural ones among them: most captures are."""
    bar.set_description("fit the lens: hold out texts")
    mixture = Mixture(decoder, vocabulary, seed, 0.0, bar)
    return mixture.held_out(mixture.texts())


def right(decoder: Decoder, lens: Lens, test: Held) -> tuple[float, float]:
    """Shares of held-out tokens that are drafted right, and that are among the first sixteen."""
    ids = draft_lists(decoder, lens, test.states).ids
    found = ids == test.ids[..., None]
    return found[..., 0].float().mean().item(), found[..., :_TOP].any(-1).float().mean().item()


def _fresh(decoder: Decoder, vocabulary: Vocabulary) -> NormalEquations:
    return NormalEquations(vocabulary.embedding.shape[1], decoder.width, decoder.width + 1, decoder.device)


def _rounds(
    decoder: Decoder,
    vocabulary: Vocabulary,
    fit: Fit,
    text: Sequence[Sequence[int]],
    bar: tqdm,
    drawn: int,
    until: float,
) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Rounds of texts `[b, T]` and their states, one at least, while the next one would end in time. drawn: how many
    tokens came before."""
    likely, rounds = None, 0
    unread = _unread(decoder, vocabulary, fit.seed, bar, drawn)
    begun = now = time.perf_counter()
    while rounds == 0 or now + (now - begun) / rounds < until:
        pages, unread = unread[:_READ], unread[_READ:]
        mixture = Mixture(decoder, vocabulary, step_seed(fit.seed, drawn), 0.0, bar, _ROUND, likely, pages)
        bar.set_description(f"fit the lens: {drawn:,} tokens")
        ids = mixture.texts()
        likely = mixture.likely
        given = _given(decoder, text, mixture.length)
        if len(given):
            at = torch.arange(len(ids[::2])) + rounds * len(ids[::2])
            ids[::2] = vocabulary.representative[given[at % len(given)]]
        ids = torch.cat([ids, mixture.varied(ids)])
        yield [(part, mixture.run(part)) for part in ids.split(64)]
        rounds, drawn, now = rounds + 1, drawn + ids.numel(), time.perf_counter()


def _unread(decoder: Decoder, vocabulary: Vocabulary, seed: int, bar: tqdm, drawn: int) -> list[int]:
    """What of the package's pages neither the first fit nor one before this has read, as far as `drawn` tells."""
    first = Mixture(decoder, vocabulary, seed, 0.0, bar)
    if first.writes:
        return []
    rounds = max(0, drawn - first.tokens) // (2 * _ROUND)  # each text comes varied as well
    return page_ids(decoder)[len(first.given) + rounds * _READ :]


def _given(decoder: Decoder, text: Sequence[Sequence[int]], length: int) -> Tensor:
    """The user's texts as rows `[n, length]`, each behind what the tokenizer puts before a text."""
    opening = opening_of(decoder)
    rows = windows(text, max(1, length - len(opening)), decoder.device)
    begun = torch.tensor([opening], dtype=torch.long, device=decoder.device).expand(len(rows), -1)
    return torch.cat([begun, rows], 1)[:, :length]
