"""One module per stage; stages never import one another, they meet in files."""
