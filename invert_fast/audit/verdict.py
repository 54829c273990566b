"""The first screen of the page: what was found, in a sentence, and the four figures that matter most."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .advice import CHEAP, compares, nats, percent, undefended
from .settings import UNDEFENDED


def verdict(summary: Mapping[str, Any]) -> dict[str, Any]:
    cells = summary["cells"]
    plain = undefended(cells)
    defended = [row for row in cells if row["defence"] != UNDEFENDED]
    wrong = sum(row["certified_wrong"] for row in cells)
    least = min(plain, key=lambda row: row["exact_match"]["value"])
    most = max(plain, key=lambda row: row["exact_match"]["value"])
    certified = min(plain, key=lambda row: row["certified"]["value"])
    cost = max(plain, key=lambda row: row["forward_tokens_per_token"]["value"])
    said = f"95 %: {percent(least['exact_match']['low'])} to {percent(least['exact_match']['high'])}"
    tiles = [
        _tile(
            "Texts back word for word, undefended",
            _between(least["exact_match"], most["exact_match"]),
            f"{said}; {_where(least, plain, 'exact_match', 'fewest')}",
        ),
        _tile(
            "Tokens certified, undefended",
            percent(certified["certified"]["value"]),
            _where(certified, plain, "certified", "fewest"),
        ),
        _tile(
            "Certified and wrong",
            f"{wrong}",
            f"of {sum(round(row['certified']['value'] * row['tokens']) for row in cells):,} certified, in all cells",
        ),
        _tile(
            "Forward tokens a token",
            f"{cost['forward_tokens_per_token']['value']:.2f}",
            f"1 is one pass of the model; {_where(cost, plain, 'forward_tokens_per_token', 'most')}",
        ),
    ]
    return {
        "title": _title(least, most, len(plain)),
        "lead": _lead(defended) if defended else "No defence was tried.",
        "wrong": wrong,
        "tiles": tiles,
        "counts": _counts(cells),
    }


def _title(least: Mapping[str, Any], most: Mapping[str, Any], cells: int) -> str:
    low, high = least["exact_match"]["value"], most["exact_match"]["value"]
    where = ", at every layer and precision" if cells > 1 else ""
    if low == 1:
        return f"Undefended, every text came back word for word{where}."
    if high == 0:
        return f"Undefended, no text came back whole{where}."
    if percent(low) == percent(high):
        return f"Undefended, {percent(low)} of the texts came back word for word."
    return (
        f"Undefended, {percent(low)} to {percent(high)} of the texts came back word for word, by layer and precision."
    )


def _lead(defended: list[Mapping[str, Any]]) -> str:
    """Of the last layer and first precision: what is left at little loss, and the least that is left at all."""
    layer, precision = defended[-1]["layer"], defended[0]["precision"]
    own = [row for row in defended if (row["layer"], row["precision"]) == (layer, precision)]
    if not any(map(compares, own)):
        left = sorted(row["token_accuracy"]["value"] for row in own)
        return f"At {layer} the defences that were tried left {percent(left[0])} to {percent(left[-1])} of the tokens."
    own = [row for row in own if compares(row)]
    cheap = [row for row in own if row["loss_added"]["value"] <= CHEAP]
    strong = min(own, key=lambda row: row["token_accuracy"]["value"])
    said = []
    if cheap:
        best = min(cheap, key=lambda row: row["token_accuracy"]["value"])
        said.append(
            f"At {layer}, {best['defence']} protected best of what costs the model at most {CHEAP:g} nats a token: "
            f"{percent(best['token_accuracy']['value'])} of the tokens still came back."
        )
    else:
        said.append(f"At {layer} no defence that was tried costs the model less than {CHEAP:g} nats a token.")
    if not cheap or strong is not best:
        left, price = strong["token_accuracy"]["value"], strong["loss_added"]["value"]
        said.append(f"The strongest, {strong['defence']}, left {percent(left)}, at {nats(price)} nats a token.")
    return " ".join(said)


def _tile(name: str, value: str, note: str) -> dict[str, str]:
    return {"name": name, "value": value, "note": note}


def _between(least: Mapping[str, float], most: Mapping[str, float]) -> str:
    low, high = percent(least["value"]), percent(most["value"])
    return low if low == high else f"{low.removesuffix(' %')} – {high}"


def _where(row: Mapping[str, Any], plain: list[Mapping[str, Any]], name: str, how: str) -> str:
    if len(plain) > 1 and len({one[name]["value"] for one in plain}) == 1:
        return "alike in all undefended cells"
    return f"{row['layer']}, {row['precision']}" + (f", with {how}" if len(plain) > 1 else "")


def _counts(cells: list[Mapping[str, Any]]) -> str:
    def told(count: int, name: str) -> str:
        return f"{count} {name}{'' if count == 1 else 's'}"

    parts = [told(len({row[name] for row in cells}), name) for name in ("layer", "precision")]
    specs = {row["defence"] for row in cells} - {UNDEFENDED}
    if specs:
        families = {spec.partition(":")[0] for spec in specs}
        parts.append(f"{told(len(families), 'defence')} at {told(len(specs), 'strength')} in all")
    return ", ".join(parts)
