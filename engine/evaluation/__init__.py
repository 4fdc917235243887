"""Students, protocols and results."""
