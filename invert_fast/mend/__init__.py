"""Texts from states that were edited: rows missing, out of order, mixed with another text's, or steered."""
