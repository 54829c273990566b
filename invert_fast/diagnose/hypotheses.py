"""What may have happened to states before they came here, in words, and as the options that undo it."""

from __future__ import annotations

from dataclasses import dataclass

from ..model.reading import AS_CAPTURED, Reading

# What each kind of hypothesis supposes, in the order in which they are tried: cheapest first.
FAMILIES = (
    "as they are said to be",
    "another layer",
    "a constant factor",
    "mean over the width taken out",
    "rows of unit length",
    "known tokens before the first row",
    "shifted positions",
    "another precision",
)
GIVEN, LAYER, FACTOR, CENTERED, LENGTH, PREFIX, OFFSET, PRECISION = range(len(FAMILIES))

# What `mend` undoes, tried where no hypothesis holds.
EDITS = {
    "gap": "rows inside the text are missing",
    "front": "one or two tokens stood before the first row",
    "order": "the rows are of one text, in another order",
    "steering": "one vector was added to all rows",
    "mixed": "the rows are of several texts, one after the other in turns",
}


@dataclass(frozen=True)
class Hypothesis:
    """States of `layer`, read by `reading`; precision: stored and computed in, None where they are what they say."""

    layer: str
    reading: Reading = AS_CAPTURED
    precision: tuple[str, str] | None = None

    def family(self, given: str) -> int:
        """The index in `FAMILIES` of the dearest thing that is supposed, where states were said to be of `given`."""
        reading = self.reading
        supposed = (
            True,
            self.layer != given,
            not reading.unit and reading.scale != 1,
            reading.centered,
            reading.unit,
            bool(reading.prefix),
            reading.position_offset > 0,
            self.precision is not None,
        )
        return max(index for index, on in enumerate(supposed) if on)

    def cost(self, given: str) -> tuple[int, bool, int]:
        """How much is supposed: of two that fit as well, the one that supposes less is believed."""
        reading = self.reading
        parts = (reading.scale != 1, reading.centered, reading.prefix, reading.position_offset, self.precision)
        return (self.layer != given) + sum(map(bool, parts)), reading.unit, self.family(given)

    def options(self, given: str, labelled: bool = False) -> str:
        """What to add to `invert-fast invert`, empty where nothing. labelled: the states say that they are of `given`,
        which has to be overruled."""
        said = [f"--layer {self.layer}"] if self.layer != given else []
        said += ["--insist"] if said and labelled else []
        said += self.reading.options()
        if self.precision:
            said += [f"--states-dtype {self.precision[0]}", f"--compute-dtype {self.precision[1]}"]
        return " ".join(said)

    def sentence(self, given: str) -> str:
        """What is supposed, in words."""
        reading = self.reading
        said = [f"they are states of {self.layer}, not of {given}"] if self.layer != given else []
        if reading.centered and reading.unit:
            said.append("each row was normalised without gain (its mean taken out, then divided by its length)")
        elif reading.centered:
            said.append("the mean over the width was taken out of every row (weights that write centred)")
        elif reading.unit:
            said.append("each row was divided by its length (or normalised without gain)")
        elif reading.scale != 1:
            said.append(f"they were multiplied by {reading.scale:.9g}")
        if reading.prefix:
            said.append(f"tokens {', '.join(map(str, reading.prefix))} stood before the first row")
        if reading.position_offset:
            said.append(f"the text began at position {reading.position_offset} (left padding without position ids)")
        if self.precision:
            stored, computed = self.precision
            how = f"computed in {computed}, stored in {stored}"
            said.append(f"they are as far off as states {how} (or a quantisation, or weights that differ as little)")
        return "; ".join(said) or "they are what they are said to be"
