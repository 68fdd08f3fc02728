"""
What is for test_rios_awsbatch.py and for tests/: the stack that all share, and which test process gets what.
"""
import os

import pytest

import rios_awsbatch
from tests.conftest import ROOT, Stack, shared       # noqa: F401  a fixture

# What tests of a module share, by the name that they ask for it with.
SHARED = {
    'test_rios_awsbatch': 'kept', 'test_like_a_process_pool': 'executor', 'test_ordinary_python': 'executor',
    'test_pool': 'aws', 'test_aws_facts': 'aws', 'test_report': 'folder', 'test_s3': 'scientist', 'test_rios': 'source'}


def pytest_configure(config):
    """The stack that all tests share, where scripts/local.sh has made none; before there are test processes."""
    config.addinivalue_line('markers', 'slow: takes long, most of it in waiting')
    if 'AWS_ENDPOINT_URL' in os.environ and not hasattr(config, 'workerinput'):
        stack = Stack(rios_awsbatch.STACK_NAME, 'rios')
        if stack.status() is None:
            stack.create().push('BatchECR', ROOT / 'worker.py')


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """
    Tests that share an executor, an AWS or a stack run in one process (--dist loadgroup), so that there is one of it.
    What takes long begins first (--no-loadscope-reorder).
    """
    last = []
    for item in items:
        module = item.module.__name__.rpartition('.')[2]
        if SHARED.get(module) in item.fixturenames:
            name = item.callspec.params['source'].name if module == 'test_rios' else 'all'
            item.add_marker(pytest.mark.xdist_group('{}-{}'.format(module, name)))
        elif not item.get_closest_marker('slow'):
            last.append(item)
    items[:] = [item for item in items if item not in last] + last
