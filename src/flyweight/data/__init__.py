"""Sources of data, one file a kind; splits, preprocessing and the leak check."""
