"""Long runs and large sizes: what grows, and what comes out. `python -m reliability.load run`, then `... page`."""
