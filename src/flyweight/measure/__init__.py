"""What is measured of a model before and while it is compressed."""
