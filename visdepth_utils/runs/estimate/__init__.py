"""Before a long run: minutes, memory and disk by notebook, and a refusal where it does not fit.

``steps`` says what each notebook measures; ``pilot`` times each kind of measurement on a few
samples; ``plan`` adds up, compares with what is free, and prints what a user sees.
"""
