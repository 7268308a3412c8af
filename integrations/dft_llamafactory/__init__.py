"""LLaMA-Factory for dft-plugin: `loss: dft` in the YAML of `llamafactory-cli train`."""
