"""Stored forms of a weight; one class a form."""
