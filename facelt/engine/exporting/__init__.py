"""A trained model in files that other tools load: ONNX graphs, and the network's weights alone."""
