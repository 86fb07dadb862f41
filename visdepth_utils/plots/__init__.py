"""The figures: one style, colour-blind safe, nulls drawn, bands explained, a Figure returned.

Every function takes tidy tables and returns a closed ``Figure``: a notebook shows it once, as the
last expression of a cell, and a run saves it. A table that lacks a column, rows or the answers that
are drawn is refused by a ``ValueError`` that says what makes such a table; so is one that holds
several modes, cuts or decoders where one is drawn. Colours follow Okabe and Ito (``style``): image
tokens are always blue, text tokens always orange, untrained controls always grey and broken.
"""
