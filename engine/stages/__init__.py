"""Stages, the verbs of the command line: they exchange files and do not import one another."""
