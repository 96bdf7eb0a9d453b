"""The papers' formulas as pure functions: tensors in, tensors out."""
