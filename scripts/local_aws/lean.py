"""What moto reads at its start and nobody here asks for, which is more than half of what a start takes.

moto imports all of its services, to know their kinds of resources, and each reads what it knows."""
import contextlib
import functools
import gc
import sys
import types

import botocore.session
import moto.utilities.utils


@contextlib.contextmanager
def imports():
    """Import moto's services in here."""
    gc.disable()
    # Each session would read botocore's models anew.
    botocore.session.create_loader = functools.cache(botocore.session.create_loader)
    load = moto.utilities.utils.load_resource
    # Which types of instances there are in each region and zone.
    moto.utilities.utils.load_resource = lambda name: [] if 'instance_type_offerings' in name else load(name)
    # API Gateway has it, and it has much else.
    for name in ('', '.validation', '.validation.exceptions'):
        sys.modules['openapi_spec_validator' + name] = types.SimpleNamespace(
            validate=None, OpenAPIValidationError=ValueError)
    yield
    moto.utilities.utils.load_resource = load
    gc.freeze()             # what is imported stays
    gc.enable()
