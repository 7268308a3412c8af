"""Bad input: cases made at random, each held to one property. `python -m reliability.fuzz run`, then `... page`.

Property: a right answer, or an error of ours that says what was given. The right answer comes from float64 (the tests'
own oracles), from PyYAML and `json` as the hosts call them, or from the same input in another spelling.
"""
