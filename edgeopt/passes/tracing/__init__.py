"""A model becomes a plain graph of ATen operators that computes the same."""
