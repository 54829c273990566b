"""Published methods to be compared with, written down as published: one text, one position, one proxy at a time.

Nothing here is fast, certified or tolerant; `demo` and the benches measure the engine against it:
`from invert_fast.baselines import sipit`, then `sipit.invert(model, hidden)`.
"""
