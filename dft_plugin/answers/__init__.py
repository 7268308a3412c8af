"""Answers of a model's own to train on: questions read, answers judged, those that are kept written. No torch."""
