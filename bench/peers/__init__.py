"""Contenders that are not this project: each file says how to install what it needs.

None of it is a dependency of the project. ``python -m bench.pack --peers FOLDER`` looks for the
packages of NAME in ``FOLDER/NAME``; what cannot be imported is recorded as absent, with the reason.
"""
