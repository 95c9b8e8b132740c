"""Tasks of a given ``.onnx``: as a file that is made smaller, and as a network that can be pruned and trained."""
