"""Torch steps: what changes a network before it is exported."""
