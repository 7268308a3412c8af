"""What needs SmolLM2, math-verify and reasoning-gym: `nox -s sample`."""

from importlib.util import find_spec

NEEDED = ("math_verify", "reasoning_gym")
collect_ignore = [] if all(map(find_spec, NEEDED)) else ["test_verifiers.py", "test_smollm2.py"]
