"""Where samples come from: one module per layout, all of them found as one ``Source``."""
