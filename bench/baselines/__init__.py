"""Published methods to be compared with, written down as published: one text, one position, one proxy at a time.

Nothing here is fast, certified or tolerant, and nothing here is installed or imported by `invert_fast`. `bench/` is on
the path of pytest and of any script in it: `from baselines import sipit`, then `sipit.invert(model, hidden)`.
"""
