"""Samples and their tasks: the embedded worlds, and tables of one's own or of a hub."""
