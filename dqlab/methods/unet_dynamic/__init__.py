"""Dynamic quantization (survey category 1.3)."""
