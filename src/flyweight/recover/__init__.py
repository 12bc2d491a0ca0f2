"""Training after compression: the original teaches the compressed model."""
