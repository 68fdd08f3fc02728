"""A small double of the interface that RIOS 2 documents, for tests where there is no RIOS."""
__version__ = '2.0.0 (double)'
