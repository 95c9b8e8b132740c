"""Measuring one ONNX file under ONNX Runtime: latency, memory, outputs, and the interleaved comparison of two files."""
