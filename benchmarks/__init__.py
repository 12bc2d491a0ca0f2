"""Every claim of speed, size or quality, measured on real data beside its rivals."""
