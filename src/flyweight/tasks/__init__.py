"""What models are for: one file a task."""
