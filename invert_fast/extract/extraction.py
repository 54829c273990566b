"""The extraction of one prompt's next-token log-probs: probe, pick, ask, say how good it is."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from ..types import InputError
from . import subspace
from .bounds import Bounds, log_probs
from .capabilities import Capabilities, probe
from .client import Client
from .interface import BudgetSpentError, Prompt
from .methods import SEARCHES, Ask, Method, pick
from .progress import Progress, hash_of
from .settings import Settings
from .work import Work


@dataclass(frozen=True)
class Extraction:
    """log_probs `[V]` fp64 nats, NaN where unknown; error `[V]`: stated bound on |log_probs − truth|, inf where
    unknown; normalised: False where only differences to the most likely token are known; queries: requests sent for
    this prompt, probing (`probe_queries`) included; theory: the number the method should take, probing not included;
    complete: all wanted tokens are known to the precision; misfit: of the least squares through the
    unembedding, nats, or None; stopped: why it is not complete, or None."""

    log_probs: np.ndarray
    error: np.ndarray
    normalised: bool
    method: str
    capabilities: Capabilities
    queries: int
    probe_queries: int
    theory: float
    complete: bool
    misfit: float | None = None
    stopped: str | None = None

    @property
    def known(self) -> np.ndarray:
        """Ids of the tokens whose log-prob is known."""
        return np.flatnonzero(np.isfinite(self.log_probs))

    @property
    def bound(self) -> float:
        """The largest error stated for a known token, nats."""
        return float(self.error[self.known].max(initial=0.0))


def extract(
    client: Client,
    prompt: Prompt,
    settings: Settings | None = None,
    *,
    image: subspace.Image | None = None,
    capabilities: Capabilities | None = None,
    progress: Progress | None = None,
    index: int = 0,
    bar: bool = True,
) -> Extraction:
    """Extract the log-probs of the token after `prompt`.

    image: the model's unembedding, if it is known: D + k tokens are then enough. capabilities: from an earlier probe of
    the same API (its reference token is measured anew). progress: where to keep what is found; a prompt that is in it
    already is continued. A spent budget ends the work: what is known by then is returned, with `stopped` saying so.
    Raises InputError (ApiError) for what the API refuses and for answers that contradict each other.
    """
    settings, size = settings or Settings(), client.api.vocab_size
    if image is not None and image.weight.shape[0] != size:
        raise InputError(f"the unembedding has {image.weight.shape[0]} rows, the API {size} tokens: give its own model")
    wanted = _wanted(settings, size)
    begun = _begin(client, prompt, capabilities, progress, index)
    route = _route(begun.found, settings, image, wanted, size)
    before = begun.spent_before
    with tqdm(
        total=len(route.tokens),
        desc=route.method.name,
        unit="token",
        delay=2,
        disable=not bar or bool(os.environ.get("TQDM_DISABLE")),
    ) as shown:

        def on_known(ids: np.ndarray) -> None:
            if progress:
                progress.keep(index, ids, begun.bounds, begun.already + client.spent - before)
            shown.n = int((begun.bounds.width[route.tokens] <= max(route.precision, 1e-12) * 1.01).sum())
            shown.set_postfix(queries=client.spent - before, refresh=False)
            shown.update(0)

        stopped = None
        work = Work(
            *(client, prompt, begun.found, begun.bounds, route.tokens, route.precision, settings.per_query, on_known),
            settings.seed,
        )
        try:
            route.method.run(work)
        except BudgetSpentError as error:
            stopped = str(error)
    misfit = _fill(begun.bounds, image, route, stopped)
    return _concluded(begun, route, settings, wanted, misfit, stopped, begun.already + client.spent - before)


@dataclass(frozen=True)
class _Begun:
    """A prompt whose extraction begins, or goes on. found: what the API can; spent_before: by the client, for others;
    already: for this prompt in an earlier run; probe_queries: those of them that probed."""

    found: Capabilities
    bounds: Bounds
    spent_before: int
    already: int
    probe_queries: int


def _begin(
    client: Client, prompt: Prompt, capabilities: Capabilities | None, progress: Progress | None, index: int
) -> _Begun:
    """Probe, unless that was done; take in what an earlier run has found."""
    before = client.spent
    saved = progress.saved.get(index) if progress else None
    if saved is not None:
        if saved.prompt != hash_of(prompt):
            raise InputError(
                f"prompt {index} is not the one in the progress file: give the same prompts, or another file"
            )
        found, already = saved.capabilities, saved.spent
    else:
        found, already = capabilities or probe(client, prompt), 0
        if progress:
            progress.start(index, prompt, found, client.spent - before)
    bounds = Bounds(client.api.vocab_size, found.reference)
    if saved is not None:
        saved.restore(bounds)
    return _Begun(found, bounds, before, already, found.queries if capabilities is None else 0)


@dataclass(frozen=True)
class _Route:
    """How the log-probs are got: which tokens are asked for, to which precision, by which method; plan: how all others
    follow from those, None where they do not."""

    method: Method
    ask: Ask
    tokens: np.ndarray
    precision: float
    plan: subspace.Plan | None


def _route(
    found: Capabilities, settings: Settings, image: subspace.Image | None, wanted: np.ndarray, size: int
) -> _Route:
    made = None
    among = size if image is None else image.width + settings.extra
    one_list = found.top > 1 + (image.width if image is not None else size)
    if image is not None and among < len(wanted) and not found.full and not one_list:
        made = subspace.plan(image, found.reference, settings.extra, settings.seed)
    tokens = wanted if made is None else np.union1d(made.tokens, [found.reference])
    precision = settings.precision if made is None else settings.precision / max(1.0, made.amplification)
    ask = Ask(len(tokens), precision, settings.per_query, size)
    by_list = image is not None and one_list and not found.full and settings.method in ("auto", "top")
    return _Route(pick("top" if by_list else settings.method, found, ask), ask, tokens, precision, made)


def _fill(bounds: Bounds, image: subspace.Image | None, route: _Route, stopped: str | None) -> float | None:
    """All entries from those that were asked for, where the unembedding allows; the misfit, or None."""
    if image is None:
        return None
    if route.method.name == "top":
        return subspace.fill(bounds, image, subspace.plan(image, bounds.reference, among=_told(bounds)))
    if route.plan is None or stopped is not None or not np.isfinite(bounds.high[route.tokens]).all():
        return None
    return subspace.fill(bounds, image, route.plan)


def _told(bounds: Bounds) -> np.ndarray:
    return np.flatnonzero(np.isfinite(bounds.high))


def _concluded(
    begun: _Begun,
    route: _Route,
    settings: Settings,
    wanted: np.ndarray,
    misfit: float | None,
    stopped: str | None,
    queries: int,
) -> Extraction:
    """What was found, and why it is not complete where it is not."""
    values = log_probs(begun.bounds)
    known = np.isfinite(begun.bounds.high[wanted])
    if stopped is None and not known.all():
        stopped = (
            f"{int((~known).sum())} of {len(wanted)} tokens were never told: the API's lists or its bias do not reach "
            "them"
        )
    worst, name = float(values.error[wanted].max(initial=0.0)), route.method.name
    if stopped is None and name in SEARCHES and worst > 1.01 * settings.precision:
        stopped = (
            f"the stated error is {worst:.2g} nats, more than the {settings.precision:g} asked for: rounding allows no "
            "less this way"
            + ("; extract more tokens (extra), or all of them without the unembedding" if misfit is not None else "")
        )
    return Extraction(
        values.values,
        values.error,
        values.normalised,
        f"{name} + unembedding" if misfit is not None else name,
        begun.found,
        queries,
        begun.probe_queries,
        route.method.theory(begun.found, route.ask),
        stopped is None,
        misfit,
        stopped,
    )


def _wanted(settings: Settings, size: int) -> np.ndarray:
    if settings.tokens is None:
        return np.arange(size)
    wanted = np.unique(np.array(settings.tokens, np.int64))
    if not len(wanted) or wanted[0] < 0 or wanted[-1] >= size:
        raise InputError(f"tokens are outside the API's vocabulary of {size}, expected ids from 0 to {size - 1}")
    return wanted
