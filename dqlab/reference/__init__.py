"""The papers' formulas alone: pure functions of tensors, one module per paper or building block.

No model is needed, so anyone can check them against the paper with numbers of their own.
"""
