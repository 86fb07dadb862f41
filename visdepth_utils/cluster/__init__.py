"""Shards of a measurement on a Ray cluster (engine ``ray``; see ``visdepth_utils.engine``).

``shards`` hands them out and takes the tables back, ``pool`` holds the workers, ``worker`` is what
runs in each of them.
"""
