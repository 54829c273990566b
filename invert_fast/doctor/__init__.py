"""What is installed, what of it is in use, and why the rest is not: `invert-fast doctor`."""
