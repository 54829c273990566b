"""What to do about it: sentences that the figures bear out, each with the figure. What they do not show is not said."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from .settings import UNDEFENDED

CHEAP, LITTLE = 0.1, 0.1  # nats a token that are called cheap; share of tokens that is called little
_ONE_PASS, _DEAR = 3.0, 100.0  # forward tokens a token: about one pass of the model, and no longer cheap
_CLEARLY = 0.05  # shares that differ by less are not told apart in words


class Advice(NamedTuple):
    """A sentence, and the figures that it rests on."""

    sentence: str
    figure: str


def percent(value: float) -> str:
    """As many digits as tell it from 0 and from 100 %."""
    if value in (0.0, 1.0):
        return f"{100 * value:.0f} %"
    if not 0.0005 <= value <= 0.9995:
        return "< 0.1 %" if value < 0.5 else "> 99.9 %"
    return f"{100 * value:.1f} %"


def interval(figure: Mapping[str, float], written=percent) -> str:
    return f"{written(figure['value'])} ({written(figure['low'])} to {written(figure['high'])})"


def nats(value: float) -> str:
    return "0.000" if abs(value) < 0.0005 else f"{value:+.3f}".replace("-", "−")


def undefended(cells: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those of the first strategy, where there are several: the others are for comparison, in the table."""
    plain = [row for row in cells if row["defence"] == UNDEFENDED]
    return [row for row in plain if row["strategy"] == plain[0]["strategy"]]


def compares(row: Mapping[str, Any]) -> bool:
    """Whether a cell can be held against others by its loss: not where rows were left out, and with them what the model
    would have said behind them; nor where a key undoes the defence, which costs nothing, and is not attacked here as it
    would be, by known rows."""
    keyed = row["defence"].partition(":")[0] == "rotation"
    return row["loss_added"] is not None and row["predicted"] == 1 and not keyed


def advice(summary: Mapping[str, Any]) -> list[Advice]:
    """In the order of their weight."""
    cells = summary["cells"]
    plain = undefended(cells)
    defended = [row for row in cells if row["defence"] != UNDEFENDED]
    return [
        *_wrong(cells),
        *_undefended(plain),
        *_precision(plain),
        *_defences(defended),
        *_certificates(plain, defended),
        *_tokens(summary["broken"]),
        *_cost(plain),
    ]


def _of(row: Mapping[str, Any]) -> str:
    return f"{row['layer']}, {row['precision']}, {row['texts']} texts"


def _wrong(cells: Sequence[Mapping[str, Any]]) -> Iterator[Advice]:
    wrong = [row for row in cells if row["certified_wrong"]]
    if wrong:
        where = ", ".join(f"{row['layer']}/{row['precision']}/{row['defence']}" for row in wrong[:3])
        count = sum(row["certified_wrong"] for row in wrong)
        yield Advice(
            "Do not rely on the certificates of this audit, and report it as a fault of the tool.",
            f"{count} tokens were certified and wrong ({where})",
        )


def _undefended(plain: Sequence[Mapping[str, Any]]) -> Iterator[Advice]:
    most = max(plain, key=lambda row: row["exact_match"]["value"])
    least = min(plain, key=lambda row: row["exact_match"]["value"])
    figure = f"{interval(least['exact_match'])} of the texts came back word for word where fewest did ({_of(least)})"
    if least["exact_match"]["low"] > 0.5:
        where = "whatever the layer or precision" if len(plain) > 1 else f"at {least['layer']}"
        yield Advice(f"Handle undefended states as you would the text itself, {where}: who has them has it.", figure)
    elif most["exact_match"]["low"] > 0.5:
        figure = f"{interval(most['exact_match'])} word for word at {_of(most)}; {figure}"
        yield Advice(
            f"Handle undefended states of {most['layer']} as you would the text itself; it is not so everywhere.",
            figure,
        )
    else:
        figure = f"{interval(most['token_accuracy'])} of the tokens came back where most did ({_of(most)})"
        yield Advice("Most texts did not come back whole from undefended states; parts of them may have.", figure)


def _precision(plain: Sequence[Mapping[str, Any]]) -> Iterator[Advice]:
    """Paired by layer and strategy: does rounding protect?"""
    names = list(dict.fromkeys(row["precision"] for row in plain))
    if len(names) < 2:
        return
    by = {name: [row["token_accuracy"]["value"] for row in plain if row["precision"] == name] for name in names}
    least = min(names, key=lambda name: sum(by[name]))
    low, high = min(map(min, by.values())), max(map(max, by.values()))
    figure = (
        "; ".join(f"{name} {percent(sum(by[name]) / len(by[name]))}" for name in names)
        + " of the tokens, mean over layers"
    )
    if high - low < _CLEARLY:
        yield Advice(
            "Do not count on a coarser precision to protect: rounding alone took next to nothing away.", figure
        )
    else:
        yield Advice(f"Rounding takes something away, most of all {least}; see the table for what is left.", figure)


def _defences(defended: Sequence[Mapping[str, Any]]) -> Iterator[Advice]:
    """In each layer of the first precision: what protects within a cheap loss, and what protecting costs."""
    measured = [row for row in defended if compares(row)]
    if not measured:
        return
    last = measured[-1]["layer"]
    own = [row for row in measured if row["layer"] == last and row["precision"] == measured[0]["precision"]]
    cheap = [row for row in own if row["loss_added"]["value"] <= CHEAP]
    if cheap:
        best = min(cheap, key=lambda row: row["token_accuracy"]["value"])
        left = best["token_accuracy"]
        figure = (
            f"{best['defence']} at {_of(best)}: {interval(left)} of the tokens came back, for "
            f"{interval(best['loss_added'], nats)} nats a token"
        )
        if left["low"] > 0.5:
            yield Advice(
                f"Do not rely on any of these defences at {last} at a strength that costs the model at most {CHEAP:g} "
                "nats a token: most of the text still came back.",
                figure,
            )
        else:
            yield Advice(
                f"At {last}, {best['defence']} is the strongest protection that costs at most {CHEAP:g} nats a token.",
                figure,
            )
    strong = [row for row in own if row["token_accuracy"]["high"] <= LITTLE]
    if strong:
        best = min(strong, key=lambda row: row["loss_added"]["value"])
        price = f"for {interval(best['loss_added'], nats)} nats a token ({_of(best)})"
        figure = f"{interval(best['token_accuracy'])} of the tokens came back, {price}"
        yield Advice(
            f"To keep all but {100 * LITTLE:.0f} % of the tokens back at {last}, {best['defence']} was the cheapest "
            "that was tried; an attacker who knows the defence may do better.",
            figure,
        )
    elif own:
        best = min(own, key=lambda row: row["token_accuracy"]["value"])
        figure = f"least came back under {best['defence']}: {interval(best['token_accuracy'])} ({_of(best)})"
        yield Advice(
            f"Nothing that was tried is sure to bring what comes back at {last} below {100 * LITTLE:.0f} %: try more "
            "strength, or do not give the states away.",
            figure,
        )


def _certificates(plain: Sequence[Mapping[str, Any]], defended: Sequence[Mapping[str, Any]]) -> Iterator[Advice]:
    if not defended:
        return
    before = max(row["certified"]["value"] for row in plain)
    unsure = [r for r in defended if not r["certified"]["value"] and r["token_accuracy"]["low"] > 0.5]
    if before > 0.5 and unsure:
        most = max(unsure, key=lambda row: row["token_accuracy"]["value"])
        yield Advice(
            "Do not take a missing certificate for safety: a defence can take the proof away and leave the text.",
            f"{most['defence']} at {_of(most)}: no token certified, {interval(most['token_accuracy'])} of them right",
        )


def _tokens(broken: Mapping[str, Any]) -> Iterator[Advice]:
    kinds = [kind for kind in broken["kinds"] if kind["tokens"] >= 100]
    if len(kinds) < 2:
        return
    hard = max(kinds, key=lambda kind: kind["share"][0])
    easy = min(kinds, key=lambda kind: kind["share"][0])
    if easy["share"][2] >= hard["share"][1]:
        return
    figure = "missed: " + "; ".join(f"{k['kind']} {percent(k['share'][0])} of {k['tokens']:,}" for k in (easy, hard))
    if easy["kind"] == "digits":
        yield Advice("Keep numbers out first: a defence that hides other tokens hid them least.", figure)
    else:
        yield Advice(
            f"Do not judge by the average: “{easy['kind']}” came back most readily, “{hard['kind']}” least.", figure
        )


def _cost(plain: Sequence[Mapping[str, Any]]) -> Iterator[Advice]:
    found = [row for row in plain if row["token_accuracy"]["value"] > 0.5]
    if not found:
        return
    dear = max(found, key=lambda row: row["forward_tokens_per_token"]["value"])
    cost = dear["forward_tokens_per_token"]["value"]
    if cost < _DEAR:
        much = ": it costs about as much as running the model on the text" if cost < _ONE_PASS else ""
        yield Advice(
            f"Do not count on the attack being expensive{much}.",
            f"at most {cost:.2f} forward tokens a token from undefended states ({_of(dear)})",
        )
