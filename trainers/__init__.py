"""Networks, noise layers, data, the training loop, and the export to ONNX."""
