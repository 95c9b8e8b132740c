"""Data for a given ``.onnx``: one module for each source, all of which return ``GivenSamples``.

``load.load_samples`` chooses the source. No module here imports PyTorch: mistakes in the data are found at once.
"""
