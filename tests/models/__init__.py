"""Tiny models that several tests share, each once; those of the table of families are in `tests.families`."""
