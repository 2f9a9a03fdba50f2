"""Time and memory of losses, training steps and decoding, as ratios within one run."""
