"""ms-swift: `loss: dft` in the YAML of `swift sft` and `swift pt`, or `--loss dft` on their command line."""
