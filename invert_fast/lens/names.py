"""Lenses by the names that users say: ours, and whatever installed packages add. Nothing is imported before it is used.

A package adds one by an entry point of the group `invert_fast.lenses`, as whose value stands what makes the lens of a
`(decoder, vocabulary, states_dtype)`, such as a class.
"""

from __future__ import annotations

from ..lazy import Registered

OWN = ("auto", "linear", "learned")
LENSES = Registered("invert_fast.lenses", "lens", OWN)
