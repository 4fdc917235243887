"""Image files: headers, refusals, Pillow."""
