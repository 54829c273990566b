"""Backends of the ops in `invert_fast.ops`: the reference, and one file a kernel. Installed as `invert_fast.kernels`."""
