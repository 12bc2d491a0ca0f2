"""Sources of models; one file a source."""
