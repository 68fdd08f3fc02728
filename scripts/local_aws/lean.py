"""What moto imports and reads at its start and nobody here asks for: half of what a start takes.

moto imports all of its services, to know their kinds of resources."""
import contextlib
import functools
import gc
import sys
import types

import botocore.session


@contextlib.contextmanager
def imports():
    """Import moto's services in here."""
    gc.disable()
    # Each session would read botocore's models anew.
    botocore.session.create_loader = functools.cache(botocore.session.create_loader)
    # API Gateway has it, and it has much else.
    for name in ('', '.validation', '.validation.exceptions'):
        sys.modules['openapi_spec_validator' + name] = types.SimpleNamespace(
            validate=None, OpenAPIValidationError=ValueError)
    yield
    gc.freeze()             # what is imported stays
    gc.enable()
