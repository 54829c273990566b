"""What the lines of an audit come to: a row a cell, each figure with its interval."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from .report import Report
from .settings import Cell
from .statistics import bootstrap, share, wilson
from .tokens import broken


def summary(report: Report) -> dict[str, Any]:
    """What summary.json has: of what the audit is, its cells, and which tokens do not come back."""
    about = {name: value for name, value in report.about.items() if name != "cells"}
    bare = report.about["bare_seconds_per_token"]
    return {
        **about,
        "texts": len(report.texts),
        "tokens": sum(len(text["ids"]) for text in report.texts.values()),
        "cells": [row_of(cell, rows, bare) for cell, rows in report.results.items()],
        "broken": broken(report.results, report.texts, report.tokens),
    }


def row_of(cell: Cell, rows: Sequence[Mapping[str, Any]], bare: float) -> dict[str, Any]:
    """One cell. exact_match: share of texts (Wilson); token_accuracy, certified, ambiguous, wrong: shares of tokens
    (texts drawn again); similarity, loss, loss_added (nats a token), forward_tokens_per_token: ratios (texts drawn
    again); certified_wrong: how many tokens; times_bare_pass: time over that of the model's own pass; discrete_loss:
    median over texts of their means; loss_texts: how many the loss was measured on; predicted: the share of their
    tokens that could be predicted at all, below 1 where rows were left out."""

    def column(name: str, of: Sequence[Mapping[str, Any]] = rows) -> list[float]:
        return [float(row.get(name) or 0) for row in of]

    tokens = column("tokens")
    measured = [row for row in rows if row.get("predicted")]
    predicted = column("predicted", measured)
    added = [a - b for a, b in zip(column("loss", measured), column("loss_undefended", measured), strict=True)]
    losses = [row["discrete_loss"] for row in rows if row.get("discrete_loss") is not None]
    to_predict = sum(column("to_predict", measured))
    seconds = sum(column("seconds")) / max(1.0, sum(tokens))
    wrong = [all_ - right for all_, right in zip(tokens, column("right"), strict=True)]
    estimates = {
        "exact_match": wilson(sum(bool(row["exact"]) for row in rows), len(rows)),
        "token_accuracy": share(column("right"), tokens),
        "similarity": share(column("similarity"), [1.0] * len(rows)),
        "certified": share(column("certified"), tokens),
        "ambiguous": share(column("ambiguous"), tokens),
        "wrong": share(wrong, tokens),
        "forward_tokens_per_token": bootstrap(column("forward_tokens"), tokens),
        "backward_tokens_per_token": bootstrap(column("backward_tokens"), tokens),
        "loss": bootstrap(column("loss", measured), predicted) if measured else None,
        "loss_added": bootstrap(added, predicted) if measured else None,
    }
    return {
        **vars(cell),
        "texts": len(rows),
        "tokens": int(sum(tokens)),
        **{
            name: None if e is None else {k: round(v, 6) for k, v in e._asdict().items()}
            for name, e in estimates.items()
        },
        "certified_wrong": int(sum(column("certified_wrong"))),
        "seconds_per_token": float(f"{seconds:.4g}"),
        "times_bare_pass": float(f"{seconds / bare:.4g}"),
        "discrete_loss": statistics.median(losses) if losses else None,
        "loss_undefended": round(sum(column("loss_undefended", measured)) / sum(predicted), 6) if measured else None,
        "loss_texts": len(measured),
        "predicted": round(sum(predicted) / to_predict, 6) if to_predict else None,
    }
