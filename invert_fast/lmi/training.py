"""Training an inverter in a plain loop.

Step i is a function of the seed and of i alone (its prompts, its dropout), so a training that was killed goes on from
its last checkpoint to the very same weights.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from ..storage.checkpoint import load_optimizer, optimizer_tensors, step_seed
from ..types import InputError
from . import checkpoint
from .muon import Muon
from .network import PromptInverter
from .prompts import PromptSet
from .schedule import batch_rows, optimizers, rate_at
from .settings import Training
from .target import Target

log = logging.getLogger("invert_fast")

_HELD_BATCH = 256
_FIT_PROMPTS = 50_000


@dataclass(frozen=True)
class TrainingReport:
    """steps taken; held_loss: the best, in nats a token (the weights kept are those); at: the step it was seen at;
    seconds of this call; path of the weights."""

    steps: int
    held_loss: float
    at: int
    seconds: float
    path: str


def train(
    net: PromptInverter,
    target: Target,
    prompts: PromptSet,
    how: Training,
    output: str | Path,
    resume: bool = False,
) -> TrainingReport:
    """Train on the prompts and keep the weights of least held-out loss in the folder `output`, beside the checkpoint
    to go on from and a line of `log.jsonl` for each look.

    Raises InputError when `output` has a training already and `resume` is not set, or one of other settings.
    """
    started, output = time.perf_counter(), Path(output)
    if net.shape.vocab_size != target.vocab_size:
        raise InputError(
            f"the inverter is for a vocabulary of {net.shape.vocab_size}, the target has {target.vocab_size}: "
            "build one for this target"
        )
    output.mkdir(parents=True, exist_ok=True)
    if (output / checkpoint.TRAINING).exists() and not resume:
        raise InputError(f"{output} holds a training already: go on with it (--resume), or give another --output")
    loop = _Loop(net, target, prompts, how, output)
    if resume and (output / checkpoint.TRAINING).exists():
        loop.resume()
    loop.run()
    return TrainingReport(
        loop.step, loop.best, loop.best_at, time.perf_counter() - started, str(output / checkpoint.WEIGHTS)
    )


class _Vectors:
    """What the target shows after prompts, by index: kept in memory where it fits."""

    def __init__(self, target: Target, prompts: Sequence[Sequence[int]], net: PromptInverter, memory_gib: float):
        self.target, self.prompts, self.view = target, prompts, net.shape.view
        size = 4 * len(prompts) * self.view.steps * self.view.width(target.vocab_size)
        self.kept = target.vectors(prompts, self.view, progress=True) if size <= memory_gib * 2**30 else None

    def __call__(self, rows: Tensor) -> Tensor:
        if self.kept is not None:
            return self.kept[rows]
        return self.target.vectors([self.prompts[i] for i in rows.tolist()], self.view)


class _Loop:
    """The state of one training: all of it is in the checkpoint."""

    def __init__(self, net: PromptInverter, target: Target, prompts: PromptSet, how: Training, output: Path):
        self.net, self.how, self.output = net, how, output
        self.step, self.best, self.best_at, self.since = 0, math.inf, 0, 0
        self.loss = math.nan
        self.labels = _labels(net, target, prompts.train)
        self.held_labels = _labels(net, target, prompts.held)
        self.data = _Vectors(target, prompts.train, net, how.memory_gib)
        self.held = target.vectors(prompts.held, net.shape.view)
        self.digest = _digest(prompts)
        if net.whiten is not None or net.estimates is not None:
            rows = torch.arange(min(_FIT_PROMPTS, len(self.labels)))
            net.fit(self.data(rows), self.labels[rows])
        self.optimizers = optimizers(net, how)

    def run(self) -> None:
        """Train until the last step, or until held-out prompts stop gaining."""
        how = self.how
        with tqdm(total=how.steps, initial=self.step, desc="train", unit="step", mininterval=1) as bar:
            while self.step < how.steps and not (how.patience and self.since >= how.patience):
                self._one()
                bar.update()
                if self.step % how.look == 0 or self.step == how.steps:
                    self._look(bar)

    def _one(self) -> None:
        how, net = self.how, self.net.train()
        rows = batch_rows(len(self.labels), how.batch, how.seed, self.step)
        vectors, labels = self.data(rows).to(net.device), self.labels[rows].to(net.device)
        rate = how.rate * rate_at(self.step, how)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * group["scale"]
            optimizer.zero_grad(set_to_none=True)
        devices = [net.device] if net.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(step_seed(how.seed, self.step))
            with torch.autocast(net.device.type, torch.bfloat16, enabled=how.bf16):
                loss = net.loss(vectors, labels[:, : int((labels >= 0).sum(1).max())].contiguous())
            loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), how.clip)
        for optimizer in self.optimizers:
            optimizer.step()
        value = loss.item()
        if not math.isfinite(value):
            raise InputError(
                f"the loss is {value} at step {self.step}, expected a finite one: lower --rate; the last checkpoint in "
                f"{self.output} is whole"
            )
        self.loss = value if math.isnan(self.loss) else 0.98 * self.loss + 0.02 * value
        self.step += 1

    @torch.no_grad()
    def _look(self, bar: tqdm) -> None:
        net = self.net.eval()
        total = 0.0
        for vectors, labels in zip(self.held.split(_HELD_BATCH), self.held_labels.split(_HELD_BATCH), strict=True):
            tokens = int((labels >= 0).sum())
            total += float(net.loss(vectors.to(net.device), labels.to(net.device))) * tokens
        held = total / int((self.held_labels >= 0).sum())
        bar.set_postfix(loss=f"{self.loss:.3f}", held=f"{held:.3f}")
        if held < self.best:
            self.best, self.best_at, self.since = held, self.step, 0
            about = {"training": asdict(self.how), "step": self.step, "held_loss": held}
            checkpoint.write(self.output / checkpoint.WEIGHTS, net, about)
        else:
            self.since += 1
        with (self.output / "log.jsonl").open("a") as file:
            file.write(json.dumps({"step": self.step, "loss": round(self.loss, 5), "held_loss": round(held, 5)}) + "\n")
        self._save()

    def _save(self) -> None:
        more = {}
        for number, optimizer in enumerate(self.optimizers):
            more |= optimizer_tensors(optimizer, f"{number}.")
        about = {"training": asdict(self.how), "digest": self.digest}
        about["progress"] = {name: getattr(self, name) for name in _PROGRESS}
        checkpoint.write(self.output / checkpoint.TRAINING, self.net, about, more)

    def resume(self) -> None:
        """Go on from the checkpoint in the output folder."""
        path = self.output / checkpoint.TRAINING
        about, tensors = checkpoint.read_tensors(path)
        asked, stored = asdict(self.how), about.get("training")
        loose = ("steps", "patience", "look", "memory_gib")  # may differ: they decide when to stop, not what a step is
        if not isinstance(stored, dict) or about.get("digest") != self.digest:
            raise InputError(f"{path} was trained on other prompts, expected the same: give another --output")
        other = [n for n in asked if n not in loose and stored.get(n) != asked[n]]
        if other:
            raise InputError(
                f"{path} was trained with {other[0]} = {stored.get(other[0])}, not {asked[other[0]]}: give the same "
                "settings, or another --output"
            )
        checkpoint.fill(self.net, tensors, path)
        try:
            progress = {name: kind(about["progress"][name]) for name, kind in _PROGRESS.items()}
            for number, optimizer in enumerate(self.optimizers):
                names = ("momentum",) if isinstance(optimizer, Muon) else ("step", "exp_avg", "exp_avg_sq")
                load_optimizer(optimizer, tensors, names, f"{number}.")
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{path} does not hold the optimizer ({error}): it was not written whole; give another --output"
            ) from error
        for name, value in progress.items():
            setattr(self, name, value)
        log.info("going on with the training from step %d", self.step)


_PROGRESS = {"step": int, "best": float, "best_at": int, "since": int, "loss": float}


def _labels(net: PromptInverter, target: Target, prompts: Sequence[Sequence[int]]) -> Tensor:
    return net.labels(prompts, target.decode(prompts) if net.tokenizer is not None else None)


def _digest(prompts: PromptSet) -> int:
    """A number that differs for other prompts or another order of them."""
    value = 0
    for ids in (*prompts.train, [-1], *prompts.held):
        for token in ids:
            value = (value * 1_000_003 + token + 2) % (1 << 61)
    return value
