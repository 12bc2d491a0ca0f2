"""Which channels of a captured graph belong together: what must be scaled or rotated along with what."""
