"""A package beside the script, as users have them: it is no part of any image."""
from . import deep

SETTINGS = {'scale': 1.0}
LOADED = None


def configure(scale):
    global LOADED
    SETTINGS['scale'] = scale
    LOADED = 'loaded'
    deep.COUNTS.append('configured')


def scaled(x):
    return x * SETTINGS['scale'], LOADED


def counted(name):
    """Imports as it goes, in each way there is."""
    from . import deep as one
    from .deep import COUNTS
    import byvalue.deep as three
    three.count(name)
    return one is three is deep, COUNTS
