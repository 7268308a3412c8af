"""Hugging Face: the loss on a model and in a trainer. The only importer of transformers, accelerate and PEFT."""
