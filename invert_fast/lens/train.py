"""Training the learned lens on what the model itself writes, mixed with random tokens: no data is needed.

Step i is a function of the seed and of i alone (its texts, its random tokens, its noise), so a fit that was killed goes
on from its last checkpoint to the very same lens. States are computed anew in each step, by the model itself.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from tqdm import tqdm

from ..model.decoder import Decoder
from ..model.vocabulary import Vocabulary
from ..storage import cache
from ..types import InputError, dtype_named
from . import store
from .learned import HEAD, LearnedLens
from .linear import LinearLens, fit_linear, noisy
from .repair import measure_repair
from .sampling import self_samples

log = logging.getLogger("invert_fast")

_POOL, _LENGTH, _HELD = 1536, 48, 128
_TOKENS = 2048  # a step
_LONG_EVERY, _LONG, _LONG_POOL = 3, 1024, 32  # every third step has long texts: they repeat what they said before
_SHARES, _OFTEN = (0.0, 0.15, 0.5, 1.0), (0.4, 0.2, 0.1, 0.3)  # of random tokens in a text, and how often each
_RATE, _RATE_LINEAR, _WARM, _CLIP = 2e-3, 2e-4, 20, 1.0
_STEPS, _FALL = 1500, 0.4  # the learning rate falls to zero over the last 40 % of the steps
_LOOK, _PATIENCE, _BETTER, _GOOD = 50, 5, 0.0005, 0.9998  # held-out texts: how often, how long without gain, how much
_SCORED = 8192  # tokens scored a position: all of a vocabulary up to this, a sample of a larger one
_CHECKPOINT_SECONDS = 30.0
_EASY, _SMALL, _LARGE = 0.9, (128, 1), (192, 2)  # width and layers where the linear lens is right so often, and else
_ROUNDINGS = {"any": (torch.float32, torch.float32, torch.float16, torch.bfloat16)}


@dataclass(frozen=True)
class Fit:
    """How a learned lens is trained.

    width, layers: of its transformer (None: 128 and 1 where the linear lens drafts nine of ten held-out tokens right,
    else 192 and 2: where there is more to correct, a second layer saves more repairs than it costs); steps: at most so
    many (None: 1,500; fewer when held-out texts stop gaining); minutes: wall time at most, sampling left out;
    states_dtype: precision that its states will be stored in, `any` for all in turn; noise: standard deviation of
    Gaussian noise on them, relative to the RMS of each; seed.
    Equal settings give the equal lens, unless `minutes` cuts the training short.
    """

    width: int | None = None
    layers: int | None = None
    steps: int | None = None
    minutes: float | None = None
    states_dtype: str = "any"
    noise: float = 0.0
    seed: int = 0

    def __post_init__(self):
        if self.width is not None and (self.width < 1 or (self.width > HEAD and self.width % HEAD)):
            raise InputError(f"a lens of width {self.width}, expected at most {HEAD} or a multiple of it")
        if self.layers is not None and self.layers < 1:
            raise InputError(f"a lens of {self.layers} layers, expected 1 or more")
        if self.steps is not None and self.steps < 1:
            raise InputError(f"{self.steps} steps, expected 1 or more")
        if self.minutes is not None and not self.minutes > 0:
            raise InputError(f"{self.minutes} minutes, expected more than 0")
        if not 0 <= self.noise <= 10:
            raise InputError(f"noise {self.noise}, expected 0 or a fraction of the states' RMS, such as 0.05")
        if self.states_dtype != "any":
            dtype_named(self.states_dtype)


@dataclass(frozen=True)
class FitReport:
    """What a fit came to. top1, top16: shares of held-out tokens whose right candidate is the first, or among the first
    sixteen: `written` by the model (or from the texts that were given) and `random`; linear: top-1 of the linear lens
    on both; steps taken; seconds; path of the lens, None when the cache is off."""

    top1: dict[str, float]
    top16: dict[str, float]
    linear: dict[str, float]
    steps: int
    seconds: float
    path: str | None


def fit_learned(
    decoder: Decoder,
    vocabulary: Vocabulary,
    fit: Fit | None = None,
    text: Sequence[Sequence[int]] = (),
    output: str | Path | None = None,
) -> FitReport:
    """Train a lens for the decoder's layer and keep it in the cache folder, from where `choose_lens` takes it. Goes on
    from the checkpoint of an equal fit that was cut short.

    text: token ids of texts like those to be recovered; half of the training text is then theirs; output: also write
    the lens to this file.
    """
    fit, started = fit or Fit(), time.perf_counter()
    folder = None if output is None else Path(output).absolute().parent
    if folder is not None and not os.access(folder, os.W_OK):  # told now, not after the training
        raise InputError(f"{output} cannot be written: give a file in a folder that exists and is yours to write")
    if fit.noise:
        linear = fit_linear(decoder, vocabulary, fit.seed, fit.noise)
    else:
        linear = store.linear_lens(decoder, vocabulary, fit.seed)
    width, layers = _SMALL if linear.accuracy >= _EASY else _LARGE
    width, layers = fit.width or width, fit.layers or layers
    fit = replace(fit, width=width, layers=layers)
    data = _Data(decoder, vocabulary, fit, text)
    with torch.random.fork_rng(devices=[decoder.device] if decoder.device.type == "cuda" else []):
        torch.manual_seed(fit.seed)
        lens = LearnedLens(linear, width, layers)
    trainer = _Trainer(lens, data, fit)
    trainer.run()
    store.round_weights(lens)
    lens.eval().requires_grad_(False)
    ids, states = data.held_ids, data.held_states
    lens.linear_accuracy = (linear.draft(states) == ids).float().mean().item()
    lens.accuracy = (lens.draft(states) == ids).float().mean().item()
    lens.repair = measure_repair(decoder, lens, ids, states)
    report = _report(lens, linear, data, trainer.step)
    about = {"fit": asdict(fit), "steps": trainer.step, "top1": report.top1, "top16": report.top16}
    whole = store.write_learned(lens, decoder, about)
    name = store.learned_name(decoder, fit.states_dtype)
    cache.write(name, whole)
    if output is not None:
        Path(output).write_bytes(whole)
    trainer.forget()
    return replace(report, seconds=time.perf_counter() - started, path=_named(cache.path(name)))


def fit_linear_again(decoder: Decoder, vocabulary: Vocabulary, seed: int = 0) -> FitReport:
    """The linear lens anew, and how well it drafts on the texts that learned lenses are measured on."""
    started = time.perf_counter()
    lens = store.linear_lens(decoder, vocabulary, seed, again=True)
    report = _report(lens, lens, _Data(decoder, vocabulary, Fit(seed=seed), ()), 0)
    path = cache.path(store.linear_name(decoder, seed))
    return replace(report, seconds=time.perf_counter() - started, path=_named(path))


def _report(lens: LinearLens | LearnedLens, linear: LinearLens, data: _Data, steps: int) -> FitReport:
    found = {name: _accuracy(lens, *data.held(name)) for name in ("written", "random")}
    base = {name: round(_accuracy(linear, *data.held(name))[0], 5) for name in found}
    top1, top16 = ({name: round(pair[i], 5) for name, pair in found.items()} for i in (0, 1))
    return FitReport(top1, top16, base, steps, 0.0, None)


def _named(path: Path | None) -> str | None:
    return None if path is None else str(path)


class _Data:
    """Texts to train and to measure on, and their states as a capture would have stored them."""

    def __init__(self, decoder: Decoder, vocabulary: Vocabulary, fit: Fit, text: Sequence[Sequence[int]]):
        self.decoder, self.fit = decoder, fit
        self.tokens = vocabulary.allowed.nonzero().flatten()
        self.length = min(_LENGTH, decoder.max_length)
        rows = self_samples(decoder, vocabulary, _POOL + _HELD, self.length, fit.seed, shares=(0.0,))
        given = _windows(text, self.length, decoder.device)
        if len(given):
            order = torch.randperm(len(given), generator=torch.Generator().manual_seed(fit.seed)).to(decoder.device)
            given = given[order.repeat(-(-len(rows) // len(order)))]
            rows[1::2] = given[: len(rows[1::2])]  # held-out ones too, though a short text repeats in both
        rows = vocabulary.representative[rows]  # tokens with equal rows are one token to a decoder
        self.rows, written = rows[_HELD:], rows[:_HELD]
        self.long_rows = self._long_rows(vocabulary, text)
        self.digest = int((rows.double() @ torch.arange(1.0, self.length + 1, device=rows.device).double()).sum())
        random = self.tokens[_randint(len(self.tokens), written.shape, fit.seed, -1).to(decoder.device)]
        self.held_ids = torch.stack([written, random], 1).flatten(0, 1)  # alternately
        self.held_states = torch.cat([self.states(part, i) for i, part in enumerate(self.held_ids.split(32))])

    def _long_rows(self, vocabulary: Vocabulary, text: Sequence[Sequence[int]]) -> Tensor:
        """A few long texts, `[n, _LONG]`: half from the texts that were given, if any is long enough."""
        length = min(_LONG, self.decoder.max_length)
        if length <= self.length:
            return self.rows[:0]
        rows = self_samples(self.decoder, vocabulary, _LONG_POOL, length, self.fit.seed + 1, shares=(0.0,))
        given = _windows([ids for ids in text if len(ids) >= length // 4], length, rows.device)[: len(rows) // 2]
        rows[: len(given)] = given
        return vocabulary.representative[rows]

    def held(self, name: str) -> tuple[Tensor, Tensor]:
        first = ("written", "random").index(name)
        return self.held_ids[first::2], self.held_states[first::2]

    def batch(self, step: int) -> Tensor:
        """The texts of one step: random tokens mixed into the model's own."""
        rows = self.long_rows if len(self.long_rows) and step % _LONG_EVERY == _LONG_EVERY - 1 else self.rows
        length = rows.shape[1]
        count = max(1, _TOKENS // length)
        generator = torch.Generator().manual_seed(_mixed(self.fit.seed, step))
        chosen = rows[torch.randint(len(rows), (count,), generator=generator).to(rows.device)]
        often = torch.multinomial(torch.tensor(_OFTEN), count, replacement=True, generator=generator)
        swap = torch.rand(count, length, generator=generator) < torch.tensor(_SHARES)[often][:, None]
        other = self.tokens[torch.randint(len(self.tokens), (count, length), generator=generator).to(rows.device)]
        return torch.where(swap.to(rows.device), other, chosen)

    @torch.no_grad()
    def states(self, ids: Tensor, step: int) -> Tensor:
        """`[b, T] → [b, T, D]` fp32, rounded and with noise as the fit asks."""
        states = self.decoder.states(ids).float()
        states = noisy(states, self.fit.noise, _mixed(self.fit.seed, step) + 1)
        roundings = _ROUNDINGS.get(self.fit.states_dtype) or (dtype_named(self.fit.states_dtype),)
        return states.to(roundings[step % len(roundings)]).float()

    def columns(self, ids: Tensor, step: int) -> Tensor | None:
        """The tokens that are scored in a step: None for all, else those in the batch and a random sample."""
        if len(self.tokens) <= _SCORED:
            return None
        sample = self.tokens[_randint(len(self.tokens), (_SCORED // 2,), self.fit.seed, step).to(ids.device)]
        return torch.cat([ids.flatten(), sample]).unique()


class _Trainer:
    """The optimisation, with its checkpoints."""

    def __init__(self, lens: LearnedLens, data: _Data, fit: Fit):
        self.lens, self.data, self.fit = lens, data, fit
        linear = [lens.project, lens.constant, lens.log_scale, lens.shift]
        chosen = {id(p) for p in linear}
        rest = [p for p in lens.parameters() if id(p) not in chosen]
        self.optimizer = torch.optim.AdamW(
            [{"params": rest, "rate": _RATE}, {"params": linear, "rate": _RATE_LINEAR}],
            lr=_RATE,
            betas=(0.9, 0.98),
            weight_decay=0.01,
        )
        self.step, self.seconds, self.best, self.since = 0, 0.0, 0.0, 0
        self.total = fit.steps or _STEPS
        self.falls_from = round(self.total * (1 - _FALL))
        same = replace(fit, minutes=None, steps=None)
        decoder = data.decoder
        self.name = cache.key(decoder.identity, "fit", json.dumps([asdict(same), data.digest])) + ".safetensors"
        states = data.held_states[:, 1:].flatten(0, 1) if data.length > 1 else data.held_states.flatten(0, 1)
        lens.mean.copy_(states.mean(0))
        lens.spread.copy_(states.std(0) + 1e-6 * states.std() + 1e-30)

    def run(self) -> None:
        """Steps until the rate has fallen to zero. It begins to fall early when held-out texts stop gaining."""
        if self.data.length < 2:
            return  # only position 0 exists, and that is the linear lens's
        self._resume()
        saved = time.perf_counter()
        with tqdm(total=self.total, initial=self.step, desc="fit the lens", unit="step", leave=False) as bar:
            while self.step < self.total:
                start = time.perf_counter()
                loss = self._step()
                self.step += 1
                if self.step % _LOOK == 0:
                    self._look(bar, loss)
                self.seconds += time.perf_counter() - start
                self._keep_to_time(bar)
                bar.update()
                if time.perf_counter() - saved > _CHECKPOINT_SECONDS:
                    self._save()
                    saved = time.perf_counter()

    def _step(self) -> float:
        lens, data = self.lens.train(), self.data
        falling = max(0, self.step - self.falls_from) / max(1, self.total - self.falls_from)
        for group in self.optimizer.param_groups:
            group["lr"] = group["rate"] * min(1.0, (self.step + 1) / _WARM) * (1 - falling)
        ids = data.batch(self.step)
        states, columns = data.states(ids, self.step), data.columns(ids, self.step)
        embedding, bias, right = lens.vocabulary.embedding, lens.bias(), ids[:, 1:].flatten()
        if columns is not None:
            embedding, bias, right = embedding[columns], bias[columns], torch.searchsorted(columns, right)
        proxies = lens(states)[:, 1:].flatten(0, 1)
        loss = F.cross_entropy(torch.addmm(bias, proxies, embedding.T), right)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(lens.parameters(), _CLIP)
        self.optimizer.step()
        return loss.item()

    def _look(self, bar: tqdm, loss: float) -> None:
        """Measure held-out texts; begin the end when they are right or have stopped gaining."""
        top1, top16 = _accuracy(self.lens.eval(), self.data.held_ids, self.data.held_states)
        bar.set_postfix(loss=f"{loss:.3f}", top1=f"{top1:.4f}", top16=f"{top16:.4f}")
        self.since = 0 if top1 > self.best + _BETTER else self.since + 1
        self.best = max(self.best, top1)
        if self.step < self.falls_from and (top1 >= _GOOD or self.since >= _PATIENCE):
            self._fall_now(bar)

    def _keep_to_time(self, bar: tqdm) -> None:
        if self.fit.minutes is None:
            return
        limit = 60 * self.fit.minutes
        if self.step < self.falls_from and self.seconds >= (1 - _FALL) * limit:
            self._fall_now(bar)
        elif self.seconds >= limit:
            self.total = self.step

    def _fall_now(self, bar: tqdm) -> None:
        self.falls_from = self.step
        self.total = bar.total = min(self.total, self.step + max(_LOOK, round(self.step * _FALL / (1 - _FALL))))

    def _save(self) -> None:
        tensors = {f"lens.{name}": t.contiguous() for name, t in self.lens.state_dict().items()}
        for number, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"{number}.{name}": torch.as_tensor(t).contiguous() for name, t in state.items()}
        about = {name: getattr(self, name) for name in _PROGRESS}
        cache.write(self.name, save(tensors, metadata={"about": json.dumps(about)}))

    def _resume(self) -> None:
        """Go on from the checkpoint of the same fit, if there is one that is whole."""
        path = cache.path(self.name)
        if path is None:
            return
        try:
            with safe_open(path, framework="pt", device=str(self.data.decoder.device)) as file:
                about = json.loads((file.metadata() or {})["about"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            progress = {name: type(getattr(self, name))(about[name]) for name in _PROGRESS}
            lens = {name: tensors[f"lens.{name}"] for name in self.lens.state_dict()}
            state = self.optimizer.state_dict()
            count = sum(len(group["params"]) for group in state["param_groups"])
            state["state"] = {
                i: {name: tensors[f"{i}.{name}"] for name in ("step", "exp_avg", "exp_avg_sq")} for i in range(count)
            }
            self.lens.load_state_dict(lens)
        except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
            log.warning("the checkpoint %s is unreadable (%s): fitting from the start", path, error)
            return
        self.optimizer.load_state_dict(state)
        asked = self.total, self.falls_from
        for name, value in progress.items():
            setattr(self, name, value)
        if self.step < self.falls_from:  # not yet ending: as many steps as are asked for now
            self.total, self.falls_from = max(asked[0], self.step), max(asked[1], self.step)
        log.info("going on with the fit from step %d", self.step)

    def forget(self) -> None:
        """The fit is whole: its checkpoint is of no more use."""
        if (path := cache.path(self.name)) is not None:
            path.unlink(missing_ok=True)


_PROGRESS = ("step", "seconds", "best", "since", "total", "falls_from")


@torch.no_grad()
def _accuracy(lens, ids: Tensor, states: Tensor) -> tuple[float, float]:
    """top-1 and top-16 over all positions but the first."""
    if ids.shape[1] < 2:
        return 1.0, 1.0
    first, later, tokens = 0.0, 0.0, ids[:, 1:].numel()
    none = torch.zeros(1, dtype=torch.bool, device=ids.device)
    for part, rows in zip(ids.split(32), states.split(32), strict=True):
        right = part[:, 1:].flatten()
        scores = lens.scores(lens.proxies(rows)[:, 1:].flatten(0, 1), none.expand(len(right)))
        ahead = (scores > scores.gather(1, right[:, None])).sum(-1)
        first, later = first + float((ahead == 0).sum()), later + float((ahead < 16).sum())
    return first / tokens, later / tokens


def _windows(text: Sequence[Sequence[int]], length: int, device: torch.device) -> Tensor:
    """Texts cut into rows of `length` tokens, `[n, length]`; texts are run together, so that short ones count too."""
    joined = torch.tensor([i for ids in text for i in ids], dtype=torch.long, device=device)
    return joined[: len(joined) // length * length].view(-1, length)


def _mixed(seed: int, step: int) -> int:
    return (seed * 1_000_003 + step * 7_919 + 12_345) % (1 << 62)


def _randint(high: int, shape, seed: int, step: int) -> Tensor:
    return torch.randint(high, tuple(shape), generator=torch.Generator().manual_seed(_mixed(seed, step) + 2))
