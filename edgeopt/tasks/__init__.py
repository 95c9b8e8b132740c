"""Tasks from a model and data loaders; rooms for ready tasks, their networks, and given ``.onnx`` files."""
