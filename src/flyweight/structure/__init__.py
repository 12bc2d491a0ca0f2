"""Removing parts of a network: what has to go together, what matters least, and the surgery."""
