"""Weights in fewer bits or bytes, with activations in float: packed products, tables, tied weights."""
