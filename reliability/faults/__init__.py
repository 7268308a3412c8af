"""What a bad day does to a run: killed, out of disk, without its other rank. `python -m reliability.faults run`."""
