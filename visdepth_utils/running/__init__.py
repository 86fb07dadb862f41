"""Notebooks without a browser: one or several at a time, and what is shown meanwhile."""
