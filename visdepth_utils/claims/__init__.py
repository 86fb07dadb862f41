"""The claims and the rules that judge them, from tables alone: nothing here runs a model."""
