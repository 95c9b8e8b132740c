"""Steps on ``.onnx`` files, their facts, and the ceilings they have to keep."""
