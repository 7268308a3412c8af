"""The first hour on a GPU: everything that needs one, in minutes, in one file. `python -m benchmarks gpu --help`."""
