"""Where pixels come in: one order, one reader, two decoders."""
