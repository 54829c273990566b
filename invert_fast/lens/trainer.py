"""The optimisation of a learned lens, with its checkpoints."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import asdict, replace
from typing import Protocol

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from tqdm import tqdm

from ..calls.interrupts import raise_interrupt
from ..model.decoder import Decoder
from ..storage import cache, checkpoint
from .files import UNREADABLE
from .learned import LearnedLens
from .precision import fast_dtype
from .settings import Fit

log = logging.getLogger("invert_fast")

_WARM, _CLIP = 20, 1.0
_FALL = 0.4  # the learning rate falls to zero over the last 40 % of the steps
_LOOK, _BETTER, _GOOD = 50, 0.0005, 0.9998  # held-out texts: how often they are looked at, what gain counts
_CHECKPOINT_SECONDS = 30.0


class TrainingData(Protocol):
    """What a lens is trained on. steps: at most, where nothing else is asked for; rate, linear_rate: of learning, of
    the transformer and of the linear part; patience: looks at held-out texts without gain before the end begins, None
    for no end but that of time and steps; digest: equal for equal texts; length: of most texts."""

    steps: int
    rate: float
    linear_rate: float
    patience: int | None
    decoder: Decoder
    digest: int
    length: int
    held_states: Tensor

    def loss(self, lens: LearnedLens, step: int) -> Tensor:
        """Of the texts of one step."""
        ...

    def accuracy(self, lens: LearnedLens) -> tuple[float, float]:
        """top-1 and top-16 on texts that are held out."""
        ...


class Trainer:
    """The optimisation, with its checkpoints."""

    def __init__(self, lens: LearnedLens, data: TrainingData, fit: Fit):
        self.lens, self.data, self.fit = lens, data, fit
        linear = [lens.project, lens.constant, lens.log_scale, lens.shift]
        chosen = {id(p) for p in linear}
        rest = [p for p in lens.parameters() if id(p) not in chosen]
        self.optimizer = torch.optim.AdamW(
            [{"params": rest, "rate": data.rate}, {"params": linear, "rate": data.linear_rate}],
            lr=data.rate,
            betas=(0.9, 0.98),
            weight_decay=0.01,
        )
        self.step, self.seconds, self.best, self.since = 0, 0.0, 0.0, 0
        self.total = fit.steps or data.steps
        self.falls_from = round(self.total * (1 - _FALL))
        same = replace(fit, minutes=None, steps=None)
        decoder = data.decoder
        # a cache folder may be that of several machines: what one began is gone on with where it ends the same
        same = [asdict(same), data.digest, str(fast_dtype(decoder.device))]
        self.name = cache.key(decoder.identity, "fit", json.dumps(same)) + ".safetensors"
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
        loss = data.loss(lens, self.step)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(lens.parameters(), _CLIP)
        self.optimizer.step()
        return loss.item()

    def _look(self, bar: tqdm, loss: float) -> None:
        """Measure held-out texts; begin the end when they are right or have stopped gaining."""
        top1, top16 = self.data.accuracy(self.lens.eval())
        bar.set_postfix(loss=f"{loss:.3f}", top1=f"{top1:.4f}", top16=f"{top16:.4f}")
        self.since = 0 if top1 > self.best + _BETTER else self.since + 1
        self.best = max(self.best, top1)
        patience = self.data.patience
        if self.step < self.falls_from and (top1 >= _GOOD or (patience is not None and self.since >= patience)):
            self._fall_now(bar)

    def _keep_to_time(self, bar: tqdm) -> None:
        if self.fit.minutes is None:
            return
        limit = 60 * self.fit.minutes
        if self.step < self.falls_from and self.seconds >= (1 - _FALL) * limit:
            self._fall_now(bar)
        elif self.seconds >= limit:
            self.total = self.step
        elif self.step < self.falls_from:  # no end is known, but how many steps there is time for
            bar.total = min(self.total, round(self.step * limit / max(self.seconds, 1e-9)))

    def _fall_now(self, bar: tqdm) -> None:
        self.falls_from = self.step
        self.total = bar.total = min(self.total, self.step + max(_LOOK, round(self.step * _FALL / (1 - _FALL))))

    def _save(self) -> None:
        tensors = {f"lens.{name}": tensor for name, tensor in self.lens.state_dict().items()}
        about = {name: getattr(self, name) for name in _PROGRESS}
        cache.write(self.name, checkpoint.as_bytes(tensors | checkpoint.optimizer_tensors(self.optimizer), about))

    def _resume(self) -> None:
        """Go on from the checkpoint of the same fit, if there is one that is whole."""
        path = cache.path(self.name)
        if path is None:
            return
        try:
            about, tensors = checkpoint.read(path, str(self.data.decoder.device))
            progress = {name: type(getattr(self, name))(about[name]) for name in _PROGRESS}
            lens = {name: tensors[f"lens.{name}"] for name in self.lens.state_dict()}
            checkpoint.load_optimizer(self.optimizer, tensors, ("step", "exp_avg", "exp_avg_sq"))
            self.lens.load_state_dict(lens)
        except (SafetensorError, OSError, *UNREADABLE) as error:
            raise_interrupt(error)
            log.warning("the checkpoint %s is unreadable (%s): fitting from the start", path, error)
            return
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
