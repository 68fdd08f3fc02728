"""A small double of the interface that RIOS 1.4 documents, for tests where there is no RIOS."""
__version__ = '1.4.0 (double)'
