"""The project's checks: what `noxfile.py` offers, by when they are run."""
