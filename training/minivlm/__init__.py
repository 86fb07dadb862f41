"""How the embedded models were made: pictured worlds, questions, recipe, training.

Nothing outside this folder needs it to run a measurement; `make train-minivlm` and `make worlds`
do.
"""
