"""Figures 1 to 8 of 2607.00852 on any model, with what the paper states beside them (docs/figures.md).

`making.make` goes from prompts to a folder; `runs` has the searches, `data` what is asked of them, and a file each the
drawings: `losses` (1, 2, 6, 7), `ranks` (3, 4, 5), `tokens` (8). `svg` draws.
"""
