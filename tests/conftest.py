"""
Fixtures of several files in this folder: a Docker, a stack. One of a single file stands there;
`shared`, and which test process gets what, in conftest.py of the folder above. What tests import is in helpers.py.
"""
import pytest

from tests.helpers import Stack, StandIn


@pytest.fixture
def docker(tmp_path):
    """A stand-in for Docker on the PATH; what it was asked, as (words, input, files of the build)."""
    return StandIn(tmp_path / 'bin', 'docker')


@pytest.fixture
def stack():
    """A stack of the test's own, without an image."""
    return Stack().create()
