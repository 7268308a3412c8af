"""A training framework of one file, for which `dft_minimal` is the adapter."""
