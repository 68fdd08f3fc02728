"""
A worker keeps what a process of a process pool keeps: the script's own modules, and what initializers and calls put there.

tests/state/script.py is an ordinary script. It runs three times, with process pools that fork and that spawn, and with
ours; each of its cases must give the same three times.
"""
import json
import subprocess
import sys

import pytest

from tests.helpers import PATIENCE, ROOT

SCRIPT = ROOT / 'tests' / 'state' / 'script.py'


def names():
    """The cases of the script, without running it."""
    lines = SCRIPT.read_text().splitlines()
    return [line.removeprefix('def ').partition('(')[0] for before, line in zip(lines, lines[1:]) if before == '@case'] + [
        line.split("'")[1] for line in lines if line.startswith('        found[')]


@pytest.fixture(scope='module')
def given():
    """What each case gives, by how the script was run."""
    running = {how: subprocess.Popen([sys.executable, SCRIPT, how], text=True, stdout=subprocess.PIPE,
                                     stderr=subprocess.PIPE) for how in ('batch', 'fork', 'spawn')}
    ended = {how: process.communicate(timeout=PATIENCE) for how, process in running.items()}
    return {how: json.loads(out) if out else pytest.fail(err) for how, (out, err) in ended.items()}


@pytest.mark.parametrize('name', names())
def test_state_is_that_of_a_process_pool(name, given):
    assert given['batch'][name] == given['fork'][name] == given['spawn'][name]
