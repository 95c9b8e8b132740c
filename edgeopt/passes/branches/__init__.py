"""Parallel branches: a sum of convolutions of one input becomes a single convolution."""
