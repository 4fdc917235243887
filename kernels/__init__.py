"""Pure numerics of coreset: arrays in, arrays out; no files, no clock, no configuration."""
