"""What the loss does to a model: a controlled study. See README.md."""
