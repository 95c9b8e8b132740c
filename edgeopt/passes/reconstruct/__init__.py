"""Weights that are fitted to what a network's layers computed before it was cut."""
