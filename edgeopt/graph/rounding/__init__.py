"""Rounding weights by what they do to a layer's output on calibration samples, and storing few bits densely."""
