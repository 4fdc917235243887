"""One module per layout of other programs: what it looks like and how it is written."""
