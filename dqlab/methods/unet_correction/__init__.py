"""Quantization error correction (survey category 1.5)."""
