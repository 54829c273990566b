"""The command line. `main.py` knows the commands; each has a file of its own, read when it is called."""
