"""From samples of a source to a packed data set."""
