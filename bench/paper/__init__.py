"""The tables of 2607.00852 measured on any model: `published` figures, what to `measure`, and how rows are
shown (`render`). `bench/paper_tables.py` is the command.
"""
