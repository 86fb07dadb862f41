"""Chores of this repository, for those who keep it: ``python -m tools COMMAND``."""
