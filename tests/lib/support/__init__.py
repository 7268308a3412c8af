"""What tests share: float64 oracles, tiny models, tiny data."""
