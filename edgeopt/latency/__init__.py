"""Latency without running the whole network: a layer's measured times, and the predictions that are made of them."""
