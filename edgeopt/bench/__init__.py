"""Measuring ONNX files under ONNX Runtime: latency, memory and outputs of one file, and the interleaved A/B of two."""
