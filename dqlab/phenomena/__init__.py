"""Measurements behind the notebooks' figures: tidy frames and tensors out, no plotting inside."""
