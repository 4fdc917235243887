"""Stages, one module a verb: they exchange files and do not import one another."""
