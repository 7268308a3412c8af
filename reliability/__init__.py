"""What makes `docs/reliability.md`: many processes, bad days, bad input, long runs; each part has a command."""
