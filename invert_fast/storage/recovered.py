"""recovered.jsonl: a line a text, written as it is found, and read back to be scored or gone on with."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from ..types import InputError, Recovery, Status
from .json_text import parse


def recovery_line(index: int, recovery: Recovery, source: str | None = None, of: int | None = None) -> str:
    """One line of recovered.jsonl. source: the file of a folder, or the tensor of several, that the text is from; of:
    the text of the states file, where several may come of one."""
    row = {"index": index, **({} if of is None else {"of": of}), **recovered_row(recovery)}
    if source is not None:
        row["source"] = source
    return json.dumps(row, ensure_ascii=False, allow_nan=False)


def recovered_row(recovery: Recovery) -> dict[str, Any]:
    """What is written of a recovery."""
    row = {
        "token_ids": recovery.token_ids.tolist(),
        "text": recovery.text,
        "certified": recovery.certified,
        "status": [Status(int(s)).label for s in recovery.status],
        "residual": _numbers(recovery.residual),
        "margin": _numbers(recovery.margin),
        "first_failure": recovery.first_failure,
        "forward_tokens": recovery.cost.forward_tokens,
        "seconds": round(recovery.cost.seconds, 6),
    }
    if recovery.posterior is not None:
        row["posterior"] = _numbers(recovery.posterior)
    if recovery.alternatives:
        row["alternatives"] = {str(position): ids for position, ids in recovery.alternatives.items()}
    if (mended := recovery.mended) is not None:
        row["mended"] = {"edit": mended.edit, "sentence": mended.sentence, "rows": list(mended.rows)}
        row["mended"] |= {"front": list(mended.front)} if mended.front else {}
    if recovery.trace is not None:
        row["trace"] = _trace(recovery.trace)
    return row


def _trace(trace: dict[str, Any]) -> dict[str, Any]:
    """What can be written of a trace: everything but the proxies themselves."""
    positions = trace["positions"]
    return {
        "loss": [None if loss is None else _numbers(loss) for loss in trace["loss"]],
        "rank_step": [None if p is None else p.proxy_steps.tolist() for p in positions],
        "rank": [None if rank is None else rank.tolist() for rank in trace["rank"]],
        "rank_at_commit": trace["rank_at_commit"].tolist(),
        "discrete_loss": _numbers(trace["discrete_loss"]),
        "cumulative_loss": _numbers(trace["cumulative_loss"]),
        "first_failure": trace["first_failure"],
    }


def _numbers(values: np.ndarray) -> list[float | None]:
    """Four digits each; null where nothing was tried (JSON has no infinity)."""
    return [float(f"{x:.4g}") if isfinite(x) else None for x in values.tolist()]


def read_recovered(path: Path) -> list[dict]:
    """All whole lines of a recovered.jsonl; InputError for anything else in it."""
    if not path.is_file():
        raise InputError(f"{path} does not exist, expected a recovered.jsonl: make one with `invert-fast invert`")
    rows = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if line.strip():
            try:
                rows.append(_row(line))
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(
                    f"{path}, line {number}: not a recovered text ({error}): was it cut short? "
                    "go on with `invert --resume`"
                ) from error
    return rows


def _row(line: bytes) -> dict[str, Any]:
    """What a line says; ValueError, KeyError or TypeError where it is none of ours."""
    row = parse(line)
    if type(row["index"]) is not int or not isinstance(row["token_ids"], list):
        raise TypeError("index or token_ids of the wrong kind")
    if not all(type(token) is int for token in row["token_ids"]):
        raise TypeError("token_ids that are no whole numbers")
    return row


def resume(path: Path, lengths: Sequence[int | None]) -> set[int]:
    """Indices already in an output file; a last line cut short by a kill is removed from it.

    lengths: tokens of each text, None where any will do. Raises InputError when the lines are of other texts.
    """
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    done = set()
    for number, line in enumerate(io.BytesIO(whole), 1):
        try:
            row = _row(line)
            index, length = row["index"], len(row["token_ids"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path}, line {number}: not a recovered text, nothing was resumed: give another --output"
            ) from error
        if not 0 <= index < len(lengths) or lengths[index] not in (length, None):
            raise InputError(
                f"{path}, line {number}: text {index} of {length} tokens is not in this states file, "
                "nothing was resumed: give the states file it was made from, or another --output"
            )
        done.add(index)
    if len(whole) < len(data):
        os.truncate(path, len(whole))
    return done
