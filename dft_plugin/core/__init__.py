"""The loss of a step: labels to targets, sums to a mean, statistics. Torch alone."""
