"""Ultra-low-bit diffusion models (survey category 1.7)."""
