"""Proofs that a device gives what the CPU gives, and how fast it is: ``coreset doctor DATA``."""
