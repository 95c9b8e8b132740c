"""edgeopt: the smallest ONNX file of a trained PyTorch model that keeps a target's limits."""
