"""Backends of the ops in `invert_fast.ops`: the reference, and one file a kernel. The package `invert_fast.kernels`."""
