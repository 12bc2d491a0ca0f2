"""Measurements of the shipped file."""
