"""
A worker keeps what a process of a process pool keeps: the script's own modules, and what initializers and calls put there.

tests/state/script.py is an ordinary script. It runs three times, with process pools that fork and that spawn, and with
ours; each of its cases must give the same three times.
"""
import json
import pickle
import re
import subprocess
import sys
import textwrap

import pytest

import rios_awsbatch
from tests.helpers import PATIENCE, ROOT, bucket, client, script_module, shared_executor

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


# ---------------------------------------------------------------------------------------------
# What the script changes goes out with the next call, as from cell to cell of a notebook, and nothing else does
# ---------------------------------------------------------------------------------------------

executor = shared_executor(1)


@pytest.fixture
def cell():
    """Runs a piece of a script, and gives what a name or a call is there."""
    with script_module() as module:
        def run(text):
            try:
                return eval(text, vars(module))
            except SyntaxError:
                exec(textwrap.dedent(text), vars(module))
        yield run


def ask(executor, function, *args):
    return executor.submit(function, *args).result(PATIENCE)


def test_script_replaces_only_what_it_has_changed(executor, cell):
    cell('''
        import functools
        TABLE, SETTINGS, LOADED, COUNTS = {'a': 1}, {'scale': 1}, [], None
        @functools.lru_cache
        def load():
            LOADED.append('model')
        class Tile:
            made = 0
            def area(self): return 1
        def helper(): return 1
        def use():
            global COUNTS
            COUNTS = COUNTS or []
            COUNTS.append('call')
            load()
            Tile.made += 1
            TABLE['calls'] = len(COUNTS)
            return dict(TABLE), SETTINGS['scale'], len(LOADED), Tile.made, Tile().area(), helper()
        ''')
    assert ask(executor, cell('use')) == ({'a': 1, 'calls': 1}, 1, 1, 1, 1, 1)
    cell('def helper(): return 2')
    assert ask(executor, cell('use')) == ({'a': 1, 'calls': 2}, 1, 1, 2, 1, 2)
    cell('SETTINGS["scale"] = 3')
    assert ask(executor, cell('use')) == ({'a': 1, 'calls': 3}, 3, 1, 3, 1, 2)
    cell('TABLE = {"b": 2}; NOT_USED = TABLE')
    assert ask(executor, cell('use')) == ({'b': 2, 'calls': 4}, 3, 1, 4, 1, 2)
    cell('Tile.area = lambda self: 5')
    assert ask(executor, cell('use')) == ({'b': 2, 'calls': 5}, 3, 1, 1, 5, 2)      # the class has changed
    cell('for each in [TABLE, SETTINGS, LOADED]: pass')
    assert ask(executor, cell('use')) == ({'b': 2, 'calls': 6}, 3, 1, 2, 5, 2)      # another name changes nothing
    cell('LOADED = ["mine"]; COUNTS = ["mine"]')
    assert ask(executor, cell('use')) == ({'b': 2, 'calls': 2}, 3, 1, 3, 5, 2)
    cell('del helper')
    with pytest.raises(NameError):
        ask(executor, cell('use'))


def test_object_of_a_class_that_was_redefined_stays_one_of_the_old_class(executor, cell):
    cell('''
        KNOWN = {}
        class Base:
            def __init_subclass__(cls, **options): KNOWN[cls.__name__] = cls
            def kind(self): return 'old'
        class Tile(Base): pass
        def look(tile):
            return isinstance(tile, Tile), type(tile).__name__, tile.kind(), KNOWN['Tile'] is Tile, len(KNOWN)
        old = Tile()
        def give(tile): return tile
        ''')
    assert ask(executor, cell('look'), cell('old')) == (True, 'Tile', 'old', True, 1)
    cell('class Tile(Base):\n    def kind(self): return "new"')
    for _ in range(2):
        assert ask(executor, cell('look'), cell('old')) == (False, 'Tile', 'old', True, 1)
        assert ask(executor, cell('look'), cell('Tile()')) == (True, 'Tile', 'new', True, 1)
    cell('class Base:\n    def kind(self): return "newest"')        # not yet of the others
    assert ask(executor, cell('look'), cell('Tile()')) == (True, 'Tile', 'new', True, 1)
    assert type(ask(executor, cell('give'), cell('old'))) is cell('type(old)')
    assert type(ask(executor, cell('give'), cell('Tile()'))) is cell('Tile')


def test_things_that_know_each_other_are_the_same_things_there(executor, cell):
    """However they are made, and changed."""
    cell('''
        import threading
        class Node:
            def __init__(self, parent=None): self.parent, self.children = parent, []
        root = Node()
        leaf = Node(root)
        root.children.append(leaf)
        nodes, also = {0: root, 1: leaf}, [leaf.children]
        def walk(x=root): return x.children
        walk.nodes, nodes[2] = nodes, walk
        lock = threading.Lock()
        locks = [lock, threading.Condition(lock)]
        def look():
            return (root.children[0] is leaf is nodes[1], leaf.parent is root is nodes[0], also[0] is leaf.children,
                    walk() is root.children, walk.nodes is nodes, nodes[2] is walk, locks[0] is lock)
        ''')
    assert ask(executor, cell('look')) == (True,) * 7
    cell('leaf = root.children[0] = nodes[1] = Node(root); also = [leaf.children]')
    assert ask(executor, cell('look')) == (True,) * 7
    cell('also = [[]]')
    assert ask(executor, cell('look')) == (True, True, False, True, True, True, True)


def test_what_no_call_needs_may_be_whatever_it_is(executor, cell):
    """A module that is used as a whole may have it in it, too."""
    cell('''
        import sys
        def lines(): yield 1
        GENERATOR, VALUE = lines(), 5
        def use(): return VALUE
        def use_all(): return sys.modules[__name__].VALUE, not hasattr(ITSELF, 'GENERATOR')
        def use_it(): return next(GENERATOR)
        ITSELF = sys.modules[__name__]
        ''')
    assert (ask(executor, cell('use')), ask(executor, cell('use_all'))) == (5, (5, True))
    error = executor.submit(cell('use_it')).exception(PATIENCE)
    assert isinstance(error, rios_awsbatch.AWSBatchPicklingError) and isinstance(error, pickle.PicklingError)
    assert re.search('use_it cannot be pickled.*GENERATOR', str(error))


def test_large_global_travels_once(executor, cell):
    """Though another one changes."""
    def large_objects():
        found = client('s3').list_objects_v2(Bucket=bucket(), Prefix='runs/{}/'.format(executor.run))['Contents']
        return sorted(item['Key'] for item in found if item['Size'] > 700_000)
    cell('''
        import numpy
        TABLE = numpy.random.default_rng(1).random(100_000)
        TABLES = {'a': TABLE}
        def helper(x): return x
        def use(): return helper(1), TABLES['a'] is TABLE, len(TABLE)
        ''')
    assert ask(executor, cell('use')) == (1, True, 100_000)
    before = large_objects()
    cell('def helper(x): return x + 1')
    assert ask(executor, cell('use')) == (2, True, 100_000)
    assert large_objects() == before and len(before) == 1
    cell('TABLE[0] = 7')
    assert ask(executor, cell('use')) == (2, True, 100_000) and len(large_objects()) == 2


def test_what_is_very_large_is_a_line_in_the_log_once(executor, cell, caplog, monkeypatch):
    monkeypatch.setattr(rios_awsbatch, 'LARGE_BYTES', 10**6)
    cell('TABLE = bytes(2_000_000)\ndef use(x, more=b""): return x + len(TABLE)')
    for x in range(3):
        assert ask(executor, cell('use'), x, bytes(3_000_000)) == x + 2_000_000
    said = [record.getMessage() for record in caplog.records if 'MB travel' in record.getMessage()]
    assert [line.partition(' travel')[0].partition('(')[0] for line in said] == [
        'The variable TABLE: 2 MB', 'The arguments of use']


def test_process_that_crashed_begins_anew_with_the_initializer():
    with script_module() as module:
        exec(textwrap.dedent('''
            import os
            SETTINGS, CALLS = {'scale': 1}, []
            def start(scale): SETTINGS['scale'] = scale
            def use(crash):
                CALLS.append(crash)
                if crash:
                    os.abort()
                return SETTINGS['scale'], len(CALLS)
            '''), vars(module))
        with rios_awsbatch.AWSBatchExecutor(1, initializer=module.start, initargs=(5,)) as executor:
            assert [ask(executor, module.use, False) for _ in range(2)] == [(5, 1), (5, 2)]
            with pytest.raises(rios_awsbatch.AWSBatchException, match='SIGABRT'):
                ask(executor, module.use, True)
            assert ask(executor, module.use, False) == (5, 1)
