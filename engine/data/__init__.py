"""From shards to batches of pixels: order, reading, decoding, caching."""
