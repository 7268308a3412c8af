"""A digest of the tensors in files that torch has saved: `python digest.py FILE ...`; whole files differ by chance."""

import hashlib
import json
import sys

import torch


def main(paths):
    """Print one for each file, as JSON."""
    found = {}
    for path in paths:
        held = torch.load(path, weights_only=False, map_location="cpu")
        digest = hashlib.sha256()
        for name in sorted(held):
            tensor = held[name]
            local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
            digest.update(f"{name} {tuple(tensor.shape)} {local.dtype}".encode())
            digest.update(local.detach().contiguous().view(torch.uint8).numpy().tobytes())
        found[path] = digest.hexdigest()[:16]
    print(json.dumps(found))


main(sys.argv[1:])
