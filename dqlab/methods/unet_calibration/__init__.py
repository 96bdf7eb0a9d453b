"""Survey category 1.1: which states of the trajectory a quantizer is calibrated on."""
