"""From a packed data set to layouts that other programs read."""
