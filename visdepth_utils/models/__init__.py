"""Checkpoints: found, loaded, placed on devices, checked at load, or drawn at random."""
