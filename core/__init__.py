"""The engine: computation graph, networks, optimizers, preprocessing, the model file. NumPy and safetensors alone."""
