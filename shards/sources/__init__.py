"""Sources of samples: one module per layout, each of which returns a ``Source``."""
