"""An ONNX graph as a torch module that computes the same, to be traced, pruned and trained."""
