"""The figures: one style, colour-blind safe, nulls drawn, bands explained, a Figure returned.

Every function takes tidy tables and returns a closed ``Figure``: a notebook shows it once, as the
last expression of a cell, and a run saves it. Colours follow Okabe and Ito (``style``): image
tokens are always blue, text tokens always orange, untrained controls always grey and broken.
"""
