"""The winner in ONNX Runtime's own format, for apps that build a reduced runtime."""
