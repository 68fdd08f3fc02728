"""The fixtures of tests/ are for test_rios_awsbatch.py too."""
from tests.conftest import shared       # noqa: F401
