"""The process and its machine: device, ranks, signals, progress, limits."""
