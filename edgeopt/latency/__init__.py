"""Latency without running the whole network: measured times of layers, and predictions made from them."""
