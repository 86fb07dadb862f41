"""Notebooks without a browser: executing one, scheduling all, and `make reproduce`."""
