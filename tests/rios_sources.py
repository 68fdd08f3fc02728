"""
The RIOS to test with, and the ways to choose AWS Batch in each: what test_rios.py and test_s3.py go through.
"""
import contextlib
import os
import pathlib
import subprocess
import sys

import pytest

from tests.helpers import ROOT

DOUBLE = ROOT / 'tests' / 'double'


class Source:
    """A RIOS to test with."""
    def __init__(self, name, *folders):
        self.name, self.folders = name, [str(folder) for folder in folders]
        found = subprocess.run(
            [sys.executable, '-c', 'import rios, importlib.util as util; from rios import applier\n'
             'print(rios.__version__, util.find_spec("rios.computemanager") is not None, '
             'hasattr(applier.ApplierControls, "setNumThreads"), rios.__path__[0], sep="|")'],
            env=self.environment(), capture_output=True, text=True)
        assert not found.returncode, found.stderr
        self.version, *flags, self.package = found.stdout.strip().split('|')
        self.is_2, self.has_calls = (flag == 'True' for flag in flags)

    def environment(self, **more):
        path = os.pathsep.join([*self.folders, str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])])
        return dict(os.environ, PYTHONPATH=path, **more)


def sources():
    if os.environ.get('RIOS_SRC'):
        return [Source(pathlib.Path(folder).name, folder)
                for folder in os.environ['RIOS_SRC'].split(os.pathsep) if folder]
    with contextlib.suppress(ImportError):
        import rios
        return [Source('rios-' + rios.__version__)]
    return [Source('double-of-1.4', DOUBLE / 'rios1', DOUBLE),
            Source('double-of-2', DOUBLE / 'rios2', DOUBLE)]


SOURCES = sources()
TWO_CALLS = {'threads': 2}
ENVIRONMENT = {'threads': 2, 'by_environment': True}


def style(**more):
    return {'style': dict(computeWorkerKind='CW_AWSBATCH', **more)}


STYLES = {
    'two-calls': TWO_CALLS, 'environment': ENVIRONMENT, 'default': style(numComputeWorkers=2),
    'main-reads-1': style(numComputeWorkers=2, computeWorkersRead=False, numReadWorkers=1),
    'main-reads-2': style(numComputeWorkers=1, computeWorkersRead=False, numReadWorkers=2),
    'workers-read-0': style(numComputeWorkers=2, computeWorkersRead=True),
    'workers-read-2': style(numComputeWorkers=2, computeWorkersRead=True, numReadWorkers=2)}


def usual(source):
    """The least that RIOS takes for concurrency."""
    return style(numComputeWorkers=1) if source.is_2 else TWO_CALLS


def every(*, two=True, one=True, styles=None):
    """
    Parametrize a test with the sources, and with the styles that each of them has. With RIOS 2 the two calls are
    but another way to write a style, so a test that does not go through all STYLES does without them there.
    """
    chosen = []
    for source in SOURCES:
        if not (two if source.is_2 else one):
            continue
        for name in styles or [None]:
            if name is None:
                chosen.append(pytest.param(source, id=source.name))
            elif source.is_2 if 'style' in STYLES[name] else source.has_calls and (
                    not source.is_2 or styles is STYLES):
                chosen.append(pytest.param(source, name, id='{}-{}'.format(source.name, name)))
    return pytest.mark.parametrize('source, style_name' if styles else 'source', chosen)
