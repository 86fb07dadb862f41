"""Runs from layer d on without running the layers below again: why sweeps are fast."""
