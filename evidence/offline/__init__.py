"""The offline setting: a model answers questions, a program says which answers are right, and it learns from these."""
