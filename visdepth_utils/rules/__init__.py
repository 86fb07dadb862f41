"""The rule of each claim: a pure function from its entry in claims.yaml and tables to a verdict."""
