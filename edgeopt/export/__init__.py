"""From a torch module to an ``.onnx`` file, and the comparison of arrays that is parity."""
