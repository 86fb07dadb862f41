"""Before a long run: minutes, memory and disk by notebook, and a refusal where it does not fit.

``steps`` says what each notebook measures, in the kinds of ``workload``; ``pilot`` times each kind
on a few samples, through ``probes``; ``estimates`` adds up; ``footprint`` knows what is free;
``plan`` is what a user sees.
"""
