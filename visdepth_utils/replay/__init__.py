"""One plain forward pass, from which any layer can be run again: why sweeps are fast and exact.

``prefill`` is the plain pass, ``rerun`` runs many ``rows`` from it, each leaving it at its own
layer; ``variants`` are the paper's interventions as such rows; ``decoding`` goes on from them,
token by token. ``layercall`` and ``parts`` call the model's own modules.
"""
