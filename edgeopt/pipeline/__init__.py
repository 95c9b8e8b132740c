"""The order of a build: the only package that knows every stage.

``build.py`` is where to start reading: it opens everything, runs ``rounds.py`` and writes the bundle.
"""
