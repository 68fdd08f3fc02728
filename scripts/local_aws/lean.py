"""What moto reads at its start and is seldom asked for, which is more than half of what a start takes.

moto imports all of its services, to know their kinds of resources, and each reads what it knows."""
import contextlib
import functools
import gc
import sys
import types

import botocore.session
import moto.utilities.utils


class Later(list):
    """The types of instances that there are in a region or its zones, read when somebody asks."""

    def __init__(self, kind, read):
        super().__init__()
        self.kind, self.read = kind, read

    def __iter__(self):
        if self.read:
            self += [dict(each, LocationType=self.kind) for each in self.read()]
            self.read = None
        return super().__iter__()


@contextlib.contextmanager
def imports():
    """Import moto's services in here."""
    gc.disable()
    # Each session would read botocore's models anew.
    botocore.session.create_loader = functools.cache(botocore.session.create_loader)
    load = moto.utilities.utils.load_resource
    moto.utilities.utils.load_resource = lambda name: [] if 'instance_type_offerings' in name else load(name)
    # API Gateway has it, and it has much else.
    for name in ('', '.validation', '.validation.exceptions'):
        sys.modules['openapi_spec_validator' + name] = types.SimpleNamespace(
            validate=None, OpenAPIValidationError=ValueError)
    yield
    moto.utilities.utils.load_resource = load
    from moto.ec2.models.instance_types import INSTANCE_TYPE_OFFERINGS, offerings_path
    for kind, regions in INSTANCE_TYPE_OFFERINGS.items():
        for region in regions:
            path = f'ec2/{offerings_path}/{kind}/{region}.json'
            regions[region] = Later(kind, functools.partial(load, path))
    gc.freeze()             # what is imported stays
    gc.enable()
