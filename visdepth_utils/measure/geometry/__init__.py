"""Entropy, intrinsic dimension, curvature and similarity of hidden states, layer by layer."""
