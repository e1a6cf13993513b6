"""The engine: computation graph, networks, optimizers, preprocessing and the model file. NumPy and safetensors alone."""
