"""What is kept on disk, whole or not at all: finished tables, verdicts, provenance.

``files`` writes; ``stepcache`` keeps a finished table under a key of its content, which holds the
version of the ``measuring_code``; ``entries`` reads and writes claims.json.
"""
