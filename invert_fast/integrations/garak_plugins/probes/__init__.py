"""Stands in the path of `garak.probes`."""
