"""Data sets as they are stored: rows of a file, a folder or the hub, read one by one and checked.

``formats`` says what differs between data sets; ``opened`` opens, ``rows`` reads, ``pictures``
decodes; ``external`` makes samples of them, as ``datasets`` does of the embedded worlds.
"""
