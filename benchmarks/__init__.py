"""What the loss costs, beside what others pay for it. `python -m benchmarks --help`."""
