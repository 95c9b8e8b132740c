"""Steps on ``.onnx`` files, the facts of a file, and the check that the target's runtime can load it."""
