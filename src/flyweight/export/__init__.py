"""File formats; one file a format."""
