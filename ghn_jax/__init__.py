"""Graph hypernetworks in JAX, trained through quantization: weights for unseen CNNs in one forward pass."""

__version__ = '0.1.0'
