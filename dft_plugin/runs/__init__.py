"""What runs have left behind, read and compared. No torch."""
