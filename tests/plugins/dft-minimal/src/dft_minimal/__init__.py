"""The framework `minimal` for dft-plugin."""
