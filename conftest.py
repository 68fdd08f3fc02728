"""
What is for test_rios_awsbatch.py as well as for tests/: the stack that all share, which test process gets what, and the
one fixture of both. Those of tests/ alone are in its conftest.py; what tests import is in tests/helpers.py.
"""
import functools
import json
import os
import pathlib
import tempfile

import pytest
import xdist.scheduler

import rios_awsbatch

pytest.register_assert_rewrite('tests.helpers')

from tests.helpers import ROOT, Stack       # noqa: E402

# What tests of a module share, by the name that they ask for it with; those that take longest first.
SHARED = {
    'test_rios': 'source', 'test_pool': 'aws', 'test_s3': 'scientist', 'test_like_a_process_pool': 'executor',
    'test_aws_facts': 'aws', 'test_examples': 'kernel', 'test_ordinary_python': 'executor', 'test_rios_awsbatch': 'kept',
    'test_batch_is_late': 'aws', 'test_check': 'aws', 'test_report': 'folder', 'test_state_of_a_process': 'given',
    'test_other_libraries': 'executor'}


@pytest.fixture
def shared():
    """A fresh folder that the main script and jobs see alike, as on a network file system. See scripts/local.sh."""
    with tempfile.TemporaryDirectory(dir=os.environ['RIOS_AWSBATCH_LOCAL_SHARED']) as folder:
        yield pathlib.Path(folder)


def pytest_configure(config):
    """The stack that all tests share, where scripts/local.sh has made none; before there are test processes."""
    config.addinivalue_line('markers', 'slow: takes long, most of it in waiting')
    if not hasattr(config, 'workerinput'):
        config.pluginmanager.register(Failures(config))
    if 'AWS_ENDPOINT_URL' in os.environ and not hasattr(config, 'workerinput'):
        stack = Stack(rios_awsbatch.STACK_NAME, 'rios')
        if stack.status() is None:
            stack.create().push('BatchECR', ROOT / 'worker.py')


class Failures:
    """Says the name of a test when it fails; what pytest has to say of it comes when all are over."""
    def __init__(self, config):
        self.config = config

    def pytest_runtest_logreport(self, report):
        if report.failed:
            reporter = self.config.pluginmanager.get_plugin('terminalreporter')
            reporter.write('\nFAILED {} ({}): {}\n'.format(
                report.nodeid, report.when, report.longreprtext.rstrip().rpartition('\n')[2]))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    """
    Tests that share an executor, an AWS or a stack are a group, so that there is one of it. Groups and what takes long
    come first.
    """
    groups, order = {}, list(SHARED)

    def place(item):
        module = item.module.__name__.rpartition('.')[2]
        if SHARED.get(module) not in item.fixturenames:
            return len(order) + (item.get_closest_marker('slow') is None)
        groups[item.nodeid] = module + (item.callspec.params['source'].name if module == 'test_rios' else '')
        return order.index(module)
    items.sort(key=place)
    if hasattr(config, 'workerinput'):
        with tempfile.NamedTemporaryFile('w', dir=config.workerinput['folder'], delete=False) as file:
            json.dump(groups, file)
        os.replace(file.name, os.path.join(config.workerinput['folder'], 'groups'))


class ByGroup(xdist.scheduler.LoadScopeScheduling):
    """Gives the tests of a group to one process, and other tests to whichever is free."""
    folder = tempfile.TemporaryDirectory()

    @functools.cached_property
    def groups(self):
        """As the test processes have found them; this one collects no tests."""
        with open(os.path.join(self.folder.name, 'groups')) as file:
            return json.load(file)

    def _split_scope(self, nodeid):
        return self.groups.get(nodeid, nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node):
    node.workerinput['folder'] = ByGroup.folder.name


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    config.option.loadscopereorder = False
    return ByGroup(config, log)
