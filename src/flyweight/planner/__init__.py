"""Decides which techniques go where. Sees profiles and settings, never a tensor."""
