"""
Fixtures of several files in this folder: the aws command line, a Docker, a stack. One of a single file stands there;
`shared`, and which test process gets what, in conftest.py of the folder above. What tests import is in helpers.py.
"""
import os

import pytest

from tests import aws_command
from tests.helpers import Stack, StandIn


@pytest.fixture(scope='session', autouse=True)
def quick_aws_command():
    """Scripts call the aws command line many times."""
    with aws_command.command() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv('PATH', str(folder), prepend=os.pathsep)
        yield


@pytest.fixture
def docker(tmp_path):
    """A stand-in for Docker on the PATH; what it was asked, as (words, input, files of the build)."""
    return StandIn(tmp_path / 'bin', 'docker')


@pytest.fixture
def stack():
    """A stack of the test's own, without an image."""
    return Stack().create()
