"""A job as one process has it open: its model, the states, and what comes of them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import torch

from .. import __version__
from ..engine.memory import shared_out
from ..engine.tolerances import Tolerances
from ..intake.files import named_layer, open_source
from ..inverter import Inverter
from ..model.decoder import Decoder
from ..model.reading import Reading
from ..storage.ahead import Ahead
from ..storage.joined import Joined, Source, parts_of
from ..storage.noise import Noise, noise_named
from ..storage.recovered import recovery_line
from ..types import InputError, Recovery, States, Status, coarsest
from .first_use import first_use
from .job import About, Found, Job

log = logging.getLogger("invert_fast")
_LOOKED_AT = 16  # texts whose noise is estimated
_AHEAD = 1 << 28  # bytes of states that are read before a GPU asks for them


class Session:
    """Opens a job: the model on `device`, the file looked into. Raises InputError for states that cannot be of the
    model, before any work; the numbers in them are looked at by `check`.

    sharing: processes that share the device, of which this is one.
    """

    def __init__(self, job: Job, device: str | None = None, sharing: int = 1):
        layer = job.layer if job.layer is not None else named_layer(job.states)
        reading = Reading(*job.reading)
        inverter = Inverter.from_pretrained(
            job.model, -1 if layer is None else layer, device, job.dtype, reading=reading
        )
        source = open_source(job.states, inverter.decoder.layer, job.tensor)
        source = source.without_model() if job.insist else source
        for name, part in parts_of(source):
            try:
                inverter.checked(0, part.head(inverter.decoder.layer.name))
            except InputError as error:
                raise InputError(f"{name}: {error}" if name else str(error)) from error
        self.job, self.inverter, self.source, self.sharing = job, inverter, source, sharing
        self.lengths = source.lengths()
        inverter.check_lengths(self.lengths)
        firsts, self.fingerprint = identified(source, inverter.decoder.layer.name)
        stored, computed = coarsest(firsts)
        self.precision = job.states_dtype or stored, job.compute_dtype or computed
        self.tolerances: Tolerances | None = None
        self.noise = noise_named(None if job.noise == "auto" else job.noise) or self._said()

    def _said(self) -> Noise | None:
        """The noise that all files say they have, where nobody knows better."""
        layer = self.inverter.decoder.layer.name
        said = {part.head(layer).noise for _, part in parts_of(self.source)}
        if len(said) > 1 and self.job.noise is None:
            raise InputError(
                f"files say they have noise {', '.join(sorted(str(one or 'none') for one in said))}, expected the same "
                "in all of them: invert them one by one, or state it (--noise)"
            )
        return said.pop() if len(said) == 1 and self.job.noise is None else None

    def about(self) -> About:
        """What it found, for the process that started this one."""
        decoder, source, (stored, computed) = self.inverter.decoder, self.source, self.precision
        more = {"reading": " ".join(decoder.reading.options()), "states_dtype": stored, "compute_dtype": computed}
        more |= {} if self.job.noise is None else {"noise": self.job.noise}
        settings = settings_of(decoder, self.fingerprint, str(self.job.strategy)) | more
        starts = source.starts[:-1] if isinstance(source, Joined) else [0]
        return About(self.lengths, [name for name, _ in parts_of(source)], starts, settings, str(decoder.device))

    def check(self, texts: Sequence[int] | None = None) -> None:
        """InputError for NaN and Inf in the rows of these texts (all of them)."""
        self.source.check_finite(texts)

    def prepare(self) -> None:
        """Measure and fit what the first inversion of a model needs, or read what another process did, and say so."""
        self.tolerances = first_use(self.inverter, self.job.strategy, *self.precision)
        log.info("%s states, %s", self.precision[0], self.tolerances.describe())
        if self.job.noise == "auto":
            layer, most = self.inverter.decoder.layer.name, min(_LOOKED_AT, len(self.lengths))
            self.noise = self.inverter.estimate_noise([self.source.states(i, layer) for i in range(most)])
            log.warning("noise, as estimated from %d texts: %s", most, self.noise or "none beyond their precision")

    def recover(self, texts: Iterable[int], lengths: Sequence[int], as_line: bool = True) -> Iterator[Found]:
        """These texts, each as it is found; lengths: of as many as will come, or of as many lanes as there may be."""
        layer, names = self.inverter.decoder.layer.name, [name for name, _ in parts_of(self.source)]
        memory = shared_out(self.inverter.decoder, self.job.max_memory, self.sharing)
        given = ((i, replace(self.source.states(i, layer), noise=self.noise)) for i in texts)
        if self.inverter.decoder.device.type == "cuda" and isinstance(texts, Sequence):
            given = Ahead(map(_pinned, given), _size, _AHEAD)
        try:
            recovered = self.inverter.invert_iter(
                given,
                self.job.strategy,
                lengths=lengths,
                batch_size=self.job.batch_size,
                max_memory=memory,
                states_dtype=self.precision[0],
                tolerances=self.tolerances,
                noise=self.noise,
            )
            for index, recovery in recovered:
                name = names[self.source.part(index) if isinstance(self.source, Joined) else 0]
                yield found(index, recovery, name, as_line)
        finally:
            if isinstance(given, Ahead):
                given.close()


def _pinned(item: tuple[int, States]) -> tuple[int, States]:
    """As a device copies it by itself."""
    index, states = item
    return index, replace(states, hidden=states.hidden.pin_memory())


def _size(item: tuple[int, States]) -> int:
    return item[1].hidden.nbytes


def identified(source: Source, layer: str) -> tuple[list[States], str]:
    """The first text with rows of each part, which stands for the precision of its file, and what tells these files
    from others: names, lengths, and those texts. The rest is not read."""
    digest, firsts = hashlib.sha256(), []
    for name, part in parts_of(source):
        lengths = part.lengths()
        filled = next((i for i, rows in enumerate(lengths) if rows), None)
        firsts.append(part.head(layer) if filled is None else part.states(filled, layer))
        digest.update(f"{name}{lengths}".encode())
        digest.update(firsts[-1].hidden.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return firsts, digest.hexdigest()[:16]


def settings_of(decoder: Decoder, fingerprint: str, strategy: str) -> dict[str, str]:
    """What decides what is recovered: equal for all shards of a run. fingerprint: of the file, see `identified`."""
    return {
        "version": __version__,
        "file": fingerprint,
        "model": decoder.fingerprint(),
        "layer": decoder.layer.name,
        "dtype": str(decoder.dtype).removeprefix("torch."),
        "strategy": strategy,
    }


def found(index: int, recovery: Recovery, name: str | None, as_line: bool = True) -> Found:
    """What is said of a recovery; name: of the part that its states are from."""
    at = recovery.first_failure
    return Found(
        index,
        len(recovery.token_ids),
        recovery.cost.forward_tokens,
        recovery.certified,
        None if at is None else (Status(int(recovery.status[at])), at),
        recovery_line(index, recovery, name) if as_line else "",
        None if as_line else recovery,
    )
