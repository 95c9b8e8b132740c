"""``.onnx`` files of any size: one file up to 2 GiB, above that the graph and a file with its large weights."""
