"""The paper's runs (arXiv 2508.05629) at full size, in each host's own YAML; their data, and their evaluation."""
