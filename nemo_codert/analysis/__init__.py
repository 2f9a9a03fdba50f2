"""Measurements of the paper on encoder, prediction and joint logits."""
