"""Triton low-bit kernels, installed as `dqlab.kernels`."""
