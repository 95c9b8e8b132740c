"""Torch steps: they change a network before it is exported."""
