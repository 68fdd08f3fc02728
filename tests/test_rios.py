"""
The promises to users of RIOS, checked with main scripts of their own.

Run with ``scripts/test.sh``, or this file alone with ``scripts/local.sh .venv/bin/python -m pytest
tests/test_rios.py``. RIOS_SRC=FOLDER:FOLDER names checkouts of RIOS, each of which everything here is run
with. Without it, the RIOS that is installed is used, and where there is none, the doubles of RIOS 1.4 and
2 in the folder tests/double, which have the documented interface and no more. The name of each test says
which it was.

Every RIOS has a stack of its own, with an image that has it. Where workers read files, these are in the
folder $RIOS_AWSBATCH_LOCAL_SHARED, which jobs see as a network file system.
"""
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile

import numpy
import pytest
from osgeo import gdal, ogr, osr

from tests.helpers import PATIENCE, ROOT, Stack
from tests.rios_sources import STYLES, every, style, usual

gdal.UseExceptions()
BLOCK, ROWS, COLUMNS = 16, 4, 3         # of the test rasters, whose last blocks are smaller
BLOCKS = ROWS * COLUMNS


# ---------------------------------------------------------------------------------------------
# A main script, and what it leaves
# ---------------------------------------------------------------------------------------------

# What all main scripts begin with. `apply` has inputs of all kinds, and prints what it returns as JSON.
SCRIPT = '''
import json, os, sys, time
import numpy as np
from osgeo import gdal
gdal.UseExceptions()
from rios import applier, cuiprogress

class Bar(cuiprogress.CUIProgressBar):
    def setProgress(self, progress):
        print('progress', progress, flush=True)
        super().setProgress(progress)

def apply(userFunction, options, **more):
    infiles, outfiles = applier.FilenameAssociations(), applier.FilenameAssociations()
    # Whole paths, as workers that read have a working folder of their own.
    infiles.image, infiles.shapes = os.path.abspath('image.tif'), os.path.abspath('shapes.geojson')
    infiles.others = [os.path.abspath('other0.tif'), os.path.abspath('other1.tif')]
    outfiles.sums, outfiles.parts = 'sums.tif', ['part0.tif', 'part1.tif']
    otherArgs = applier.OtherInputs()
    otherArgs.gain, otherArgs.blocks = 3, []
    vars(otherArgs).update(more)
    controls = applier.ApplierControls()
    controls.setWindowXsize({block})
    controls.setWindowYsize({block})
    controls.setOverlap(2)
    controls.setOutputDriverName('GTiff')
    controls.setCreationOptions(['TILED=YES', 'BLOCKXSIZE={block}', 'BLOCKYSIZE={block}'])
    controls.setCalcStats(False)
    controls.setProgress(Bar())
    if 'threads' in options:
        controls.setNumThreads(options['threads'])
        if not options.get('by_environment'):
            controls.setJobManagerType('AWSBatch')
    if 'style' in options:
        controls.setConcurrencyStyle(applier.ConcurrencyStyle(**options['style']))
    returned = applier.apply(userFunction, infiles, outfiles, otherArgs, controls=controls)
    print(json.dumps({{
        'blocks': otherArgs.blocks,
        'copies': [each.blocks for each in getattr(otherArgs, 'otherArgsList', None) or []],
        'returned': [each.blocks for each in returned.otherArgsList] if returned else None,
        'timings': returned.timings.formatReport() if returned else None,
        'names': sorted(returned.timings.pairs) if returned else None}}))
    return otherArgs

def everything(info, inputs, outputs, otherArgs):
    """Uses the neighbours of a pixel, all inputs, and otherArgs in and out."""
    image = inputs.image.astype(np.float64)
    sums = sum(np.roll(image, (down, right), (1, 2)) for down in (-2, 0, 1) for right in (-1, 0, 2))
    others = inputs.others[0].astype(np.int32) - inputs.others[1]
    outputs.sums = sums + otherArgs.gain * inputs.shapes
    outputs.parts = [others * inputs.shapes, (image[:1] > 9).astype(np.uint8) * (info.getBlockCount()[0] + 1)]
    otherArgs.blocks.append([int(number) for number in info.getBlockCount()])

options = json.loads(sys.argv[1])
'''.format(block=BLOCK)
CONCURRENT = 'import rios_awsbatch\nrios_awsbatch.WATCH_SECONDS = 1\n'


def make_inputs(folder):
    """Rasters of two types, and a vector, that lie on one grid."""
    random = numpy.random.default_rng(5)
    system = osr.SpatialReference()
    system.ImportFromEPSG(32755)
    rows, columns = ROWS * BLOCK - 3, COLUMNS * BLOCK - 5
    for name, bands, dtype, kind in (('image', 2, numpy.uint8, gdal.GDT_Byte),
                                     ('other0', 1, numpy.int16, gdal.GDT_Int16),
                                     ('other1', 1, numpy.int16, gdal.GDT_Int16)):
        raster = gdal.GetDriverByName('GTiff').Create(
            str(folder / (name + '.tif')), columns, rows, bands, kind)
        raster.SetGeoTransform((500000, 10, 0, 6000000, 0, -10))
        raster.SetProjection(system.ExportToWkt())
        raster.WriteArray(random.integers(0, 200, (bands, rows, columns)).astype(dtype))
        raster = None
    shapes = ogr.GetDriverByName('GeoJSON').CreateDataSource(str(folder / 'shapes.geojson'))
    layer = shapes.CreateLayer('shapes', system)
    feature = ogr.Feature(layer.GetLayerDefn())
    feature.SetGeometry(ogr.CreateGeometryFromWkt(
        'POLYGON((500035 5999965, 500285 5999905, 500205 5999505, 500035 5999965))'))
    layer.CreateFeature(feature)
    feature = layer = shapes = None


@pytest.fixture
def folder(tmp_path):
    """Where a main script runs, with the inputs; workers see it where RIOS_AWSBATCH_LOCAL_SHARED is set."""
    shared = os.environ.get('RIOS_AWSBATCH_LOCAL_SHARED')
    if not shared:
        make_inputs(tmp_path)
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=shared) as name:
        make_inputs(pathlib.Path(name))
        yield pathlib.Path(name)


STACKS = {}


def stack_of(source):
    """The stack whose image has that RIOS, and nothing else of this computer."""
    if source not in STACKS:
        path = 'PYTHONPATH=' + os.pathsep.join(source.folders)
        STACKS[source] = Stack().create().push('BatchECR', ROOT / 'worker.py', path)
    return STACKS[source]


def start(source, folder, text, options=None, **environment):
    """Start a main script; its outputs and temporary files are in `folder`."""
    script = folder / 'main.py'
    script.write_text(text)
    return subprocess.Popen([sys.executable, str(script), json.dumps(options or {})], cwd=folder, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            env=source.environment(RIOS_AWSBATCH_STACK=stack_of(source).name, **environment))


def finish(process):
    """Wait for a main script: (exit status, standard output, standard error)."""
    try:
        out, err = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        pytest.fail('the main script hangs:\n{}\n{}'.format(*process.communicate()))
    return process.returncode, out, err


def run(source, folder, text, options=None, **environment):
    return finish(start(source, folder, text, options, **environment))


def succeed(source, folder, text, options=None, **environment):
    """Run a main script that must succeed; what it printed last, and its standard error."""
    status, out, err = run(source, folder, text, options, **environment)
    assert status == 0, err
    return json.loads(out.splitlines()[-1]), err


def results(folder):
    """All pixels of all outputs, and then the files go."""
    found = {}
    for path in sorted([folder / 'sums.tif', *folder.glob('part*.tif')]):
        found[path.name] = gdal.Open(str(path)).ReadAsArray()
        path.unlink()
    return found


ALONE = {}


def without_concurrency(source, folder):
    """What RIOS itself returns and writes."""
    if source not in ALONE:
        returned, _ = succeed(source, folder, SCRIPT + EVERYTHING)
        ALONE[source] = returned, results(folder)
    return ALONE[source]


def left_on_aws(source):
    """Queues and objects of any run whose main script is not there any more, by run."""
    stack = stack_of(source)
    return {re.search(r'\d{8}T\d{6}-[0-9a-f]{8}', name).group()
            for name in stack.queues() + stack.objects('runs/')}


# A main script tells which runs are its own, for those that must leave nothing.
TELL_RUNS = '''
import logging, re
class Told(logging.Handler):
    def emit(self, record):
        begun = re.match('Run (.*): .* workers? asked for', record.getMessage())
        if begun:
            print('run', begun[1], flush=True)
logging.getLogger('rios_awsbatch').addHandler(Told())
logging.getLogger('rios_awsbatch').setLevel(logging.INFO)
logging.getLogger('rios_awsbatch').addHandler(logging.lastResort)
'''


def assert_nothing_left(source, out, runs=1):
    told = re.findall(r'^run (\S+)$', out, re.MULTILINE)
    assert len(told) == runs
    assert not left_on_aws(source) & set(told)


def assert_failed_at_once(err):
    """The script did not end because one of RIOS's buffers was waited for in vain."""
    assert 'BlockBuffer timeout' not in err


# ---------------------------------------------------------------------------------------------
# The same results
# ---------------------------------------------------------------------------------------------

EVERYTHING = 'apply(everything, options)\n'


BY_WORKERS = r"""
def by_workers(info, inputs, outputs, otherArgs):
    assert os.environ['AWS_BATCH_JOB_ID']
    everything(info, inputs, outputs, otherArgs)
apply(by_workers, options)
"""


@every(styles=STYLES)
def test_outputs_progress_and_timings_are_those_without_concurrency(source, style_name, folder):
    """And workers compute every block."""
    alone, expected = without_concurrency(source, folder)
    options = STYLES[style_name]
    environment = {'RIOS_DFLT_JOBMGRTYPE': 'AWSBatch'} if options.get('by_environment') else {}
    status, out, err = run(source, folder, CONCURRENT + SCRIPT + BY_WORKERS, options, **environment)
    assert status == 0, err
    found, returned = results(folder), json.loads(out.splitlines()[-1])
    assert sorted(found) == sorted(expected) == ['part0.tif', 'part1.tif', 'sums.tif']
    for name in expected:
        assert found[name].dtype == expected[name].dtype
        assert numpy.array_equal(found[name], expected[name])
    assert expected['sums.tif'].std() > 0 and expected['part0.tif'].any()
    assert expected['part1.tif'].max() == COLUMNS
    # Each block started from the caller's otherArgs, and every changed copy came back, in order.
    assert returned['copies'] == [[block] for block in alone['blocks']]
    assert len(returned['copies']) == BLOCKS and returned['blocks'] == []
    assert returned['returned'] in (None, returned['copies'])
    # A warning says so at once, and again at the end.
    assert err.count('changes otherArgs.blocks. ') == err.count('has changed otherArgs.blocks in 12 of the blocks') == 1
    assert 'otherArgs.blocks is [], and would be [[' in err
    assert err.count('otherArgs.blocks = sum((each.blocks for each in otherArgs.otherArgsList), [])') == 1
    # RIOS's own progress bar, and its report of timings, which RIOS 1.4 does not have.
    shown = [int(number) for number in re.findall(r'^progress (\d+)', out, re.MULTILINE)]
    assert shown[-1] == 100 and len(set(shown)) >= 3
    if source.is_2:
        assert {'walltime', 'startcomputeworkers', 'reading', 'userfunction', 'pop_computebuffer', 'writing'} <= set(
            returned['names'])
        for name in ('reading', 'startcomputeworkers', 'userfunction', 'pop_computebuffer'):
            assert re.search(r'^{}\s+\d'.format(name), returned['timings'], re.MULTILINE), returned['timings']


@every()
def test_example_gives_the_same_texture_with_and_without_aws(source, folder):
    def texture(name, *more):
        subprocess.run([sys.executable, str(ROOT / 'examples/texture_rios.py'),
                        str(ROOT / 'examples/data/landsat7_olinda.tif'), str(folder / name),
                        '--blocksize', '128', '--radius', '1', *more], check=True, cwd=str(folder),
                       env=source.environment(RIOS_AWSBATCH_STACK=stack_of(source).name))
        return gdal.Open(str(folder / name)).ReadAsArray()
    assert numpy.array_equal(texture('serial.tif', '--serial'), texture('aws.tif', '--workers', '2'))


@every()
def test_two_runs_in_one_script_send_other_args_once_and_each_block_starts_with_the_callers(source, folder):
    status, out, err = run(source, folder, CONCURRENT + TELL_RUNS + SCRIPT + r'''
class Table:
    """Much, which counts how often this process pickles and unpickles it."""
    def __init__(self):
        self.values = np.zeros(300000)
    def __getstate__(self):
        sys.pickled = getattr(sys, 'pickled', 0) + 1
        return self.values
    def __setstate__(self, values):
        sys.unpickled = getattr(sys, 'unpickled', 0) + 1
        self.values = values

def look(info, inputs, outputs, otherArgs):
    assert sys.unpickled == 1
    mine = applier.OtherInputs()
    mine.gain, mine.blocks = otherArgs.gain, []
    everything(info, inputs, outputs, mine)

def spoil(info, inputs, outputs, otherArgs):
    assert not otherArgs.table.values.any()
    otherArgs.table.values[:] = 1
    everything(info, inputs, outputs, otherArgs)

apply(look, options, table=Table())
pickled = sys.pickled
apply(spoil, options, table=Table())
print(pickled)
''', usual(source))
    assert (status, out.splitlines()[-1:]) == (0, ['1']), err
    assert_nothing_left(source, out, runs=2)


OTHER_ARGS = r'''
import functools, io, types
class Model:
    """Remembers what it was asked."""
    def __init__(self):
        self.weights, self.answer_cache = np.ones(300000), {}
    @functools.cached_property
    def inverse(self):
        return 1 / self.weights
class Tally:
    _count = None

def starting():
    return dict(
        model=Model(), package=types.SimpleNamespace(_index=None, file=io.BytesIO(b'kept')), table={1: [2]},
        number=0, grid=np.zeros(9), tally=Tally(), deep={'a': [types.SimpleNamespace(n=0)]}, mean=[1.5],
        other_package=types.SimpleNamespace(_n=0), inner=types.SimpleNamespace(file=io.BytesIO(b'kept')),
        file=io.BytesIO(b'read'), gone=1, rare=types.SimpleNamespace(n=0))

def asks(info, inputs, outputs, otherArgs):
    mine = applier.OtherInputs()
    mine.gain, mine.blocks = otherArgs.gain, []
    everything(info, inputs, outputs, mine)
    otherArgs.model.inverse, otherArgs.table[1]
    otherArgs.model.answer_cache[1] = 2
    otherArgs.package._index = otherArgs.package.file.read()
    otherArgs.number += 0

def changes(info, inputs, outputs, otherArgs):
    asks(info, inputs, outputs, otherArgs)
    otherArgs.number += 2
    otherArgs.grid[3] = 1
    otherArgs.tally._count = 1
    otherArgs.deep['a'][0].n += 1
    otherArgs.mean[:] = [2.5]
    otherArgs.other_package._n += 1
    otherArgs.inner.file.write(b'x')
    otherArgs.file.read()
    otherArgs.new = 7
    del otherArgs.gone
    if info.getBlockCount() == (0, 0):
        otherArgs.rare.n = 4

def keeps(info, inputs, outputs, otherArgs):
    everything(info, inputs, outputs, otherArgs)
    print('kept', len(otherArgs.blocks))

with rios_awsbatch.AWSBatchExecutor(1):
    mine = apply(asks, options, **starting())
    assert mine.otherArgsList == [mine]
    print('now the changes', file=sys.stderr)
    mine = apply(changes, options, **starting())
    print('no more', file=sys.stderr)
    each, *_ = mine.otherArgsList
    print(each.number, each.grid[3], each.tally._count, each.deep['a'][0].n, each.mean, each.other_package._n,
          each.file.tell(), each.new, hasattr(each, 'gone'), each.rare.n)
    assert (mine.number, mine.grid.any(), mine.gone, mine.tally._count) == (0, False, 1, None)
    assert all(each.model is mine.model and each.table is mine.table for each in mine.otherArgsList)
    assert len({id(each.rare) for each in [mine, *mine.otherArgsList]}) == 1 + len(mine.otherArgsList)
    print(sum(each.rare.n for each in mine.otherArgsList))
    mine = apply(keeps, options, otherArgsList=None)
    assert mine.otherArgsList is None
'''


@every()
def test_attributes_of_other_args_come_back_that_were_changed_and_not_only_asked(source, folder):
    """And what functions print comes home with worker and block."""
    report = folder / 'report'
    status, out, err = run(source, folder, CONCURRENT + SCRIPT + OTHER_ARGS, usual(source),
                           RIOS_AWSBATCH_REPORT=str(report), RIOS_AWSBATCH_WORKER_OUTPUT='1')
    assert status == 0, err
    asked, changed, kept = re.split('now the changes|no more', err)
    assert 'otherArgs' not in asked
    named = 'number grid tally deep mean other_package inner file new gone rare'.split()
    first, last = re.findall(r'function (?:changes|has changed) ((?:otherArgs\.\w+(?:, )?)+)', changed)
    assert sorted(re.findall(r'\.(\w+)', last)) == sorted(named)
    assert set(re.findall(r'\.(\w+)', first)) >= set(named) - {'rare'}
    assert f'otherArgs.number is 0, and would be {2 * BLOCKS} as a sum. The line to add below apply(): ' in changed
    assert 'otherArgs.number = sum(each.number for each in otherArgs.otherArgsList)' in changed
    assert '\n2 1.0 1 1 [2.5] 1 4 7 False 4\n4\n' in out
    # A list there always is; RIOS 2 has it, too.
    returned = [json.loads(line) for line in out.splitlines() if line.startswith('{')]
    assert [len(each['copies']) for each in returned] == [1, BLOCKS, 0]
    assert [len(each['returned'] or '') for each in returned] == ([1, BLOCKS, 1] if source.is_2 else [0, 0, 0])
    # A worker keeps its copy where nothing is to come back, and nothing is said.
    printed = re.findall(r'^Run .*: worker \d, (keeps\(.*\)): kept (\d+)$', kept, re.MULTILINE)
    assert sorted(int(number) for _, number in printed) == list(range(1, BLOCKS + 1))
    assert len({label for label, _ in printed}) == BLOCKS
    assert 'otherArgs' not in kept
    # The model has travelled one way only. What was said at the end is in the report.
    records = [json.loads(line) for path in report.iterdir() for line in path.read_text().splitlines()]
    assert max(record['bytes_out'] for record in records if record['is'] == 'block') < 10**6
    assert [record['text'] in err for record in records if record['is'] == 'told'] == [True]


@every()
def test_one_executor_serves_many_applies(source, folder):
    _, expected = without_concurrency(source, folder)
    status, out, err = run(source, folder, CONCURRENT + TELL_RUNS + SCRIPT + r'''
import glob
def unlucky(info, inputs, outputs, otherArgs):
    raise ArithmeticError('no luck')
with rios_awsbatch.AWSBatchExecutor(2) as executor:
    apply(everything, options)
    for _ in range(2):
        try:
            apply(unlucky, options)
        except Exception as error:
            print('told', type(error).__name__)
    # RIOS has made them in $TMPDIR, which is this folder.
    print('left', glob.glob('rios_*'))
    for number in range(3):
        apply(everything, options)
    print('blocks', sum(executor.stats()['blocks_per_worker'].values()))
''', usual(source), TMPDIR=str(folder))
    assert status == 0, err
    assert out.count('told') == 2
    assert 'left []' in out
    assert_nothing_left(source, out, runs=1)
    found = results(folder)
    assert all(numpy.array_equal(expected[name], found[name]) for name in expected)


@every(two=False)
def test_function_may_ask_for_file_names_and_nodata_values(source, folder):
    """RIOS 1.4 forgets both before it hands a block over."""
    for name in ('other0', 'image'):
        raster = gdal.Open(str(folder / (name + '.tif')), gdal.GA_Update)
        raster.GetRasterBand(raster.RasterCount).SetNoDataValue(7)
        raster = None
    text = SCRIPT + r'''
def asks(info, inputs, outputs, otherArgs):
    everything(info, inputs, outputs, otherArgs)
    otherArgs.blocks = [[
        [os.path.basename(info.getFilenameFor(block)) for block in (inputs.image, *inputs.others)],
        [value if value is None else float(value) for value in (
            info.getNoDataValueFor(inputs.image, 2), info.getNoDataValueFor(inputs.others[0]),
            info.getNoDataValueFor(inputs.others[1]))]]]
apply(asks, options)
'''
    alone, _ = succeed(source, folder, text)
    returned, _ = succeed(source, folder, CONCURRENT + text, usual(source))
    assert returned['copies'] == [alone['blocks']] * BLOCKS
    assert alone['blocks'][0] == [['image.tif', 'other0.tif', 'other1.tif'], [7, 7, None]]


# ---------------------------------------------------------------------------------------------
# What goes wrong
# ---------------------------------------------------------------------------------------------

FAILING = r'''
def unlucky(info, inputs, outputs, otherArgs):
    everything(info, inputs, outputs, otherArgs)
    if info.getBlockCount() != (0, 0):
        raise ArithmeticError('no luck with this block')
apply(unlucky, options)
'''


@every(styles=['two-calls', 'default', 'workers-read-0', 'main-reads-2'])
def test_user_exception_surfaces_as_rios_users_know_it(source, style_name, folder):
    status, out, err = run(source, folder, CONCURRENT + TELL_RUNS + SCRIPT + FAILING, STYLES[style_name])
    assert status == 1
    assert 'ArithmeticError: no luck with this block' in err
    assert re.search(r'File ".*", line \d+, in unlucky$', err, re.MULTILINE), 'no remote traceback is shown'
    assert err.splitlines()[-1].partition(':')[0].rpartition('.')[2] == (
        'WorkerExceptionError' if source.is_2 else 'ArithmeticError')
    assert_failed_at_once(err)
    if source.is_2:
        errors = re.findall(r'^Error in (\w+) worker', err, re.MULTILINE)
        assert errors == ['compute'], 'the first error that RIOS shows is not the real one'
    assert_nothing_left(source, out)


@every(styles=['two-calls', 'default', 'workers-read-0'])
def test_sigterm_during_a_run_leaves_nothing(source, style_name, folder):
    process = start(source, folder, CONCURRENT + TELL_RUNS + SCRIPT + r'''
def slow(info, inputs, outputs, otherArgs):
    everything(info, inputs, outputs, otherArgs)
    time.sleep(1)
apply(slow, options)
''', STYLES[style_name])
    early = ''
    for line in process.stdout:
        early += line
        if re.match(r'progress [1-9]', line):
            process.send_signal(signal.SIGTERM)
            break
    status, out, err = finish(process)
    assert status not in (0, 1), (status, err)
    assert_nothing_left(source, early + out)


@every(one=False)
def test_interrupt_while_workers_start_leaves_nothing(source, folder):
    # Ctrl-C in startWorkers(), for which RIOS itself has no clean-up.
    status, out, err = run(source, folder, CONCURRENT + TELL_RUNS + SCRIPT + r'''
import signal
class Interrupt(logging.Handler):
    def emit(self, record):
        if 'workers asked for' in record.getMessage():
            signal.setitimer(signal.ITIMER_REAL, 0.1)
signal.signal(signal.SIGALRM, signal.default_int_handler)
logging.getLogger('rios_awsbatch').addHandler(Interrupt())
apply(everything, options)
''', STYLES['main-reads-1'])
    assert 'KeyboardInterrupt' in err and status != 0
    assert_nothing_left(source, out)


@every(styles=['two-calls', 'default'])
def test_raster_that_cannot_be_opened_is_an_error_of_rios(source, style_name, folder):
    (folder / 'image.tif').write_text('no raster')
    status, out, err = run(source, folder, CONCURRENT + TELL_RUNS + SCRIPT + EVERYTHING, STYLES[style_name])
    assert status == 1
    assert err.splitlines()[-1].startswith('rios.rioserrors.')
    assert_nothing_left(source, out, runs=0)


@every(styles=['two-calls', 'default', 'main-reads-2', 'workers-read-0'])
def test_block_that_cannot_be_read_ends_the_run(source, style_name, folder):
    whole = (folder / 'other0.tif').read_bytes()
    (folder / 'other0.tif').write_bytes(whole[:len(whole) * 2 // 3])    # GDAL opens it, and reads some rows
    status, out, err = run(source, folder, CONCURRENT + TELL_RUNS + SCRIPT + EVERYTHING, STYLES[style_name])
    assert status == 1
    if source.is_2:
        assert re.search(r'^Error in (read|compute) worker', err, re.MULTILINE)
        first, last = err.index('RuntimeError'), err.rindex('WorkerExceptionError')
        assert first < last
    assert_failed_at_once(err)
    assert_nothing_left(source, out)


# ---------------------------------------------------------------------------------------------
# RIOS's own classes, and a RIOS that has changed
# ---------------------------------------------------------------------------------------------

@every()
@pytest.mark.parametrize('order', ['before', 'after'])
def test_deprecated_class_of_rios_is_harmless(source, folder, order):
    module = 'from rios import computemanager' if source.is_2 else 'from rios.parallel.aws import batch'
    lines = [module, 'import rios_awsbatch']
    lines = lines if order == 'before' else lines[::-1]
    _, err = succeed(source, folder, '\n'.join(lines) + '\n' + SCRIPT + EVERYTHING, usual(source))
    assert 'deprecated' not in err


@every()
def test_forgotten_import_ends_at_once_and_is_named(source, folder):
    if 'double' in source.name:
        pytest.skip('the doubles have no AWS Batch of their own')
    theirs = '' if source.is_2 else 'from rios.parallel.aws import batch\n'
    status, out, err = run(source, folder, theirs + SCRIPT + EVERYTHING, usual(source))
    assert status == 1
    assert "ValueError" in err and 'needs the line: import rios_awsbatch' in err if source.is_2 else (
        "KeyError: 'BatchInQueue'" in err)


# ---------------------------------------------------------------------------------------------
# What each parameter of ConcurrencyStyle does
# ---------------------------------------------------------------------------------------------

@every(one=False)
def test_parameter_that_makes_no_sense_is_refused(source, folder):
    wrong = (
        ({'computeWorkerExtraParams': {'mem': 3}},
         r'computeWorkerExtraParams .* may have .*vcpus, memory.*, not mem: did you mean memory .MiB.\?'),
        ({'singleBlockComputeWorkers': True}, 'numComputeWorkers'),
        ({'computeWorkersRead': False}, 'numReadWorkers'))
    status, out, err = run(source, folder, CONCURRENT + TELL_RUNS + SCRIPT + '''
for style in options:
    try:
        apply(everything, style)
    except ValueError as error:
        print('refused', error)
''', [style(numComputeWorkers=2, **more) for more, _ in wrong])
    assert status == 0, err
    refused = re.findall('^refused (.*)$', out, re.MULTILINE)
    assert len(refused) == len(wrong)
    for found, (_, said) in zip(refused, wrong):
        assert re.search(said, found)
    assert_nothing_left(source, out, runs=0)


@every(one=False)
def test_extra_parameters_and_barrier_time_out_are_obeyed(source, folder):
    """No worker comes up within a moment; it would have been of that size."""
    size = {'vcpus': 2, 'memory': 700, 'timeout': 5000}
    status, out, err = run(source, folder, CONCURRENT + TELL_RUNS + SCRIPT + EVERYTHING, style(
        numComputeWorkers=1, computeWorkerExtraParams=size, computeBarrierTimeout=0.001))
    assert status == 1
    assert 'No worker was up within 0.001 seconds (computeBarrierTimeout)' in err
    assert_nothing_left(source, out)
    stack, name = stack_of(source), re.search(r'^run (\S+)$', out, re.MULTILINE).group(1)
    batch = stack.client('batch')
    listed, = batch.list_jobs(jobQueue=stack.outputs()['BatchProcessingJobQueueName'], filters=[
        {'name': 'JOB_NAME', 'values': ['{}_{}'.format(stack.name, name)]}])['jobSummaryList']
    job, = batch.describe_jobs(jobs=[listed['jobId']])['jobs']
    assert job['timeout'] == {'attemptDurationSeconds': 5000}
    assert {need['type']: need['value'] for need in job['container']['resourceRequirements']} == {
        'VCPU': '2', 'MEMORY': '700'}


@every(one=False)
def test_readers_wait_while_a_run_takes_long_to_start(source, folder):
    """RIOS fills its buffer before it starts workers, and gives up when there is no room for so many seconds."""
    _, expected = without_concurrency(source, folder)
    _, err = succeed(source, folder, CONCURRENT + r"""
import os, time
import boto3
latency = [2.5] * 3             # of the first requests
boto3.setup_default_session(**{name: os.environ[name.upper()] for name in (
    'aws_access_key_id', 'aws_secret_access_key')})
boto3.DEFAULT_SESSION.events.register('before-send', lambda **request: time.sleep(latency.pop() if latency else 0))
""" + SCRIPT + EVERYTHING + 'assert not latency\n', style(
        numComputeWorkers=1, computeWorkersRead=False, numReadWorkers=2, readBufferInsertTimeout=5))
    found = results(folder)
    assert all(numpy.array_equal(expected[name], found[name]) for name in expected)


@every(one=False)
def test_extra_parameters_inside_a_with_statement_are_refused(source, folder):
    """Its workers are there already."""
    status, out, err = run(source, folder, CONCURRENT + TELL_RUNS + SCRIPT + """
with rios_awsbatch.AWSBatchExecutor(1):
    apply(everything, options)
""", style(numComputeWorkers=1, computeWorkerExtraParams={'memory': 700}))
    assert status == 1
    assert re.search('ValueError: computeWorkerExtraParams has memory, but .* "with AWSBatchExecutor"', err)
    assert_nothing_left(source, out)


@every(one=False)
def test_parameters_that_are_not_needed_are_named_for_debugging(source, folder):
    _, err = succeed(source, folder, CONCURRENT + """
import logging
logging.basicConfig()
rios_awsbatch.log.setLevel('DEBUG')
""" + SCRIPT + EVERYTHING, style(numComputeWorkers=1, haveSharedTemp=False, computeBufferPopTimeout=1))
    found = re.findall(r'CW_AWSBATCH does not need (\S+)', err)
    assert sorted(found) == ['computeBufferPopTimeout=1', 'haveSharedTemp=False']


@every(one=False)
def test_worker_that_cannot_read_a_file_says_why(source, folder):
    status, out, err = run(source, folder, CONCURRENT + TELL_RUNS + SCRIPT.replace(
        "os.path.abspath('image.tif')", "'image.tif'") + EVERYTHING, STYLES['workers-read-0'])
    assert status == 1
    assert re.search(r'A worker cannot read "image.tif" .*or leave computeWorkersRead out', err)
    assert_nothing_left(source, out)


@every()
def test_apply_works_in_a_spawned_process(source, folder):
    alone, expected = without_concurrency(source, folder)
    status, out, err = run(source, folder, CONCURRENT + SCRIPT + """
import multiprocessing
if __name__ == '__main__':
    child = multiprocessing.get_context('spawn').Process(target=apply, args=(everything, options))
    child.start()
    child.join()
    sys.exit(child.exitcode)
""", usual(source))
    assert status == 0, err
    assert json.loads(out.splitlines()[-1])['copies'] == [[block] for block in alone['blocks']]
    found = results(folder)
    assert all(numpy.array_equal(expected[name], found[name]) for name in expected)
