"""The matrix: every way to split a run over processes (rows), by everything that a run may be made of (columns).

Each cell trains three steps through the plain Trainer with the real engine below it, and is compared with one process.
"""
