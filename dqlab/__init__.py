"""dqlab: the lab bench for diffusion-model quantization."""

__version__ = "0.1.0"
