"""Train a small model twice on the same data, with cross-entropy and with DFT, and compare."""
