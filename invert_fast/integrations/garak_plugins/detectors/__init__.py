"""Stands in the path of `garak.detectors`."""
