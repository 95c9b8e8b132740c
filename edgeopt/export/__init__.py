"""Export of a torch module to an ``.onnx`` file, and the comparison of outputs (parity)."""
