"""Compression algorithms; one file an algorithm."""
