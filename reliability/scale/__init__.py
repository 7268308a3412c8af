"""What the loss costs on many devices: on paper, and by counting what real processes send (`docs/scale.md`)."""
