"""Survey category 1.2: tensors that hold two populations."""
