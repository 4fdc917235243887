"""Decoders, models, training, protocols, stages, report, command line."""
