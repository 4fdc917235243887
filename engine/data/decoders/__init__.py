"""Decoders: stored bytes in, batches of uint8 or float32 pixels out."""
