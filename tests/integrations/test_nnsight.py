"""nnsight, in a process of its own: it gives every object of a process a `save`."""

from __future__ import annotations

from invert_fast.integrations.needs import NNSIGHT

from .needed import needed
from .page import PASSWORD, block

needed(NNSIGHT)
REFUSED = """
from invert_fast import InputError

print("-")
print(states_of(model, saved, model.transformer.h[2], end="input").layer)
print(states_of(model, saved, model.transformer.h[0], end="input").layer)
print(states_of(model, saved, model.transformer.ln_f).layer)
for at, value in ((model.transformer.h[1].mlp, saved), (saved, saved), (model.transformer.h[1], None)):
    try:
        states_of(model, value, at)
    except InputError as error:
        print(error)
"""


def test_the_example_names_the_layer_and_what_is_no_layer_is_refused(apart):
    first, *rest = apart(block("nnsight") + REFUSED).splitlines()
    assert first == str([(PASSWORD, True), ("Meet me at a quarter past nine, by the mill.", True)])
    assert rest[:4] == ["-", "block:1", "embeddings", "final_norm"]
    wanted = ("this is the output of a GPT2MLP", "a Tensor came where nnsight's model", "what was saved is a NoneType")
    assert [line.startswith(start) for line, start in zip(rest[4:], wanted, strict=True)] == [True] * 3
