"""
The examples do what they say, on AWS Batch, and are small enough to be copied.

That the way of large images holds, with all its options, is in test_s3.py.
"""
import os
import re
import shutil
import signal
import subprocess
import sys
import threading

import numpy
import pytest
from osgeo import gdal

from tests.helpers import EXAMPLES, PATIENCE, ROOT, SCENE, assert_nothing_left, wait_until

import blocks       # one of the examples

gdal.UseExceptions()


def run(script, *args):
    """Run an example to its end: what it prints."""
    done = subprocess.run([sys.executable, str(EXAMPLES / script), *map(str, args)], capture_output=True,
                          text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    return done.stdout


# ---------------------------------------------------------------------------------------------
# blocks.py, and the scripts that use it
# ---------------------------------------------------------------------------------------------

def test_smallest_script_is_in_the_readme_and_small():
    script = (EXAMPLES / 'smallest_gdal.py').read_text()
    assert script in (ROOT / 'README.md').read_text()
    assert script.count('\n') <= 30
    # Half of it is for types of pixels, places on Earth, and files that are whole: nothing that rasterio 1.4 has.
    assert (EXAMPLES / 'blocks.py').read_text().count('\n') <= 170


def test_smallest_script_computes_what_one_process_does(tmp_path):
    run('smallest_gdal.py', SCENE, tmp_path / 'mean.tif')
    pixels = gdal.Open(str(SCENE)).ReadAsArray()
    padded = numpy.pad(pixels, ((0, 0), (2, 2), (2, 2)))
    mean = numpy.lib.stride_tricks.sliding_window_view(padded, (5, 5), axis=(1, 2)).mean(axis=(3, 4))
    result = gdal.Open(str(tmp_path / 'mean.tif'))
    assert numpy.array_equal(result.ReadAsArray(), mean.astype('float32'))
    assert result.GetGeoTransform() == gdal.Open(str(SCENE)).GetGeoTransform()


def raster(nodata=None, dtype=gdal.GDT_Int16):
    pixels = numpy.random.default_rng(1).integers(1, 1000, (3, 70, 101))
    dataset = gdal.GetDriverByName('MEM').Create('', 101, 70, 3, dtype)
    dataset.WriteArray(pixels)
    if nodata is not None:
        for number in (1, 2, 3):
            dataset.GetRasterBand(number).SetNoDataValue(nodata)
    return dataset, pixels


@pytest.mark.parametrize('margin', [0, 1, 40, 200])
@pytest.mark.parametrize('nodata, dtype, fill', [
    (None, gdal.GDT_Int16, 0), (-7, gdal.GDT_Int16, -7), (float('nan'), gdal.GDT_Float32, float('nan')),
    (-9999, gdal.GDT_UInt16, 0)])
def test_block_has_its_margin_of_neighbours_and_nodata(margin, nodata, dtype, fill):
    dataset, pixels = raster(nodata, dtype)
    around = [(0, 0), (margin, margin), (margin, margin)]
    padded = numpy.pad(pixels.astype(float), around, constant_values=fill)
    windows = blocks.windows(dataset, 32)
    assert len(windows) == 12
    for left, top, columns, rows in windows:
        block = blocks.read(dataset, (left, top, columns, rows), margin)
        assert numpy.array_equal(
            block, padded[:, top:top + rows + 2 * margin, left:left + columns + 2 * margin], equal_nan=True)
        some = blocks.read(dataset, (left, top, columns, rows), margin, [3])
        assert numpy.array_equal(some, block[[2]], equal_nan=True)


def test_blocks_join_to_several_outputs_as_they_come(tmp_path):
    dataset, pixels = raster()
    windows, done = blocks.windows(dataset, 32), []

    def results():
        for number, window in enumerate(windows):
            assert len(done) == number      # the result before this one is written
            block = blocks.read(dataset, window)
            yield block // 10, block.sum(axis=0)
    with blocks.create(tmp_path / '1.tif', dataset, bands=3, dtype='uint8', size=32, nodata=255) as first, \
            blocks.create(tmp_path / '2.tif', dataset) as second:
        blocks.write([first, second], windows, results(), lambda: done.append(1))
    first, second = (gdal.Open(str(tmp_path / name)) for name in ('1.tif', '2.tif'))
    assert numpy.array_equal(first.ReadAsArray(), pixels // 10)
    assert numpy.array_equal(second.ReadAsArray(), pixels.sum(axis=0))
    assert first.GetRasterBand(3).GetNoDataValue() == 255
    assert first.GetRasterBand(1).GetBlockSize() == [32, 32]


@pytest.mark.slow
def test_texture_is_that_of_one_process(tmp_path):
    """With blocks that fit neither the image nor its tiles, and a margin wider than a block."""
    said = run('texture_gdal.py', SCENE, tmp_path / 'texture.tif', '--workers', 2, '--blocksize', 96,
               '--radius', 1, 2, '--check', '--preview', tmp_path / 'texture.png')
    assert '16 blocks in' in said and 'by 2 workers (blocks each: ' in said
    assert '0 of 122848 pixels differ' in said
    assert [path.name for path in sorted(tmp_path.iterdir())][:2] == ['texture.png', 'texture.tif']


# ---------------------------------------------------------------------------------------------
# The notebook
# ---------------------------------------------------------------------------------------------

class Notebook:
    """The example notebook in a kernel of its own; cells are known by a word in them."""

    def __init__(self, folder):
        import nbclient
        self.error, self.folder = nbclient.exceptions.CellExecutionError, folder
        self.open()
        self.client = nbclient.NotebookClient(
            self.notebook, timeout=PATIENCE, kernel_name='python3',
            resources={'metadata': {'path': str(folder)}})

    def open(self):
        """Have its cells as they are in the file."""
        import nbformat
        self.notebook = nbformat.read(str(self.folder / 'notebook.ipynb'), as_version=4)

    def run(self, word, change=('', '')):
        """Run the cell with the word in it, changed; its outputs."""
        cell = self.cell(word)
        assert change[0] in cell.source
        cell.source = cell.source.replace(*change, 1)
        self.client.execute_cell(cell, self.notebook.cells.index(cell))
        return cell.outputs

    def cell(self, word):
        found, = [cell for cell in self.notebook.cells if cell.cell_type == 'code' and word in cell.source]
        return found

    def do(self, source):
        """Run a cell that is not in the notebook; its outputs."""
        import nbformat
        cell = nbformat.v4.new_code_cell(source)
        self.notebook.cells.append(cell)
        self.client.execute_cell(cell, len(self.notebook.cells) - 1)
        return self.notebook.cells.pop().outputs

    def value(self, expression):
        """What an expression is in the kernel, as Python writes it."""
        return self.do(expression)[-1]['data']['text/plain']

    def interrupt_when(self, condition):
        """Ctrl-C, as soon as the condition holds; returns at once."""
        def interrupt():
            wait_until(condition)
            os.kill(self.client.km.provisioner.pid, signal.SIGINT)
        threading.Thread(target=interrupt).start()


@pytest.fixture(scope='module')
def kernel(tmp_path_factory):
    """For all tests of the notebook, since it takes long to start."""
    tmp_path = tmp_path_factory.mktemp('notebook')
    folder = tmp_path / 'examples'
    folder.mkdir()
    (tmp_path / 'scripts').symlink_to(ROOT / 'scripts')
    for name in ('notebook.ipynb', 'blocks.py'):
        shutil.copy(EXAMPLES / name, folder)
    (folder / 'data').symlink_to(EXAMPLES / 'data')
    notebook = Notebook(folder)
    with notebook.client.setup_kernel(env=dict(os.environ, IPYTHONDIR=str(tmp_path / 'ipython'))):
        notebook.run('import blocks')
        yield notebook


@pytest.fixture
def notebook(kernel):
    kernel.open()
    kernel.client.nb = kernel.notebook
    return kernel


def kinds(outputs):
    return {kind for output in outputs for kind in output.get('data', ())}


MEAN = 'float(result.mean())'
# They are enough for most of what the notebook promises.
TWO = '(max_workers=4)', '(max_workers=2)'


def test_notebook_runs_from_top_to_bottom(notebook):
    """The live line is a widget; the result and the run's own picture are below their cells."""
    shown, = notebook.run('executor = ')
    assert re.fullmatch('<AWSBatchExecutor run {}: [0-4] of 4 workers up, 0 blocks done, 0 outstanding>'.format(
        notebook.value('executor.run').strip("'")), shown['data']['text/plain'])
    notebook.run('def index')
    assert kinds(notebook.run('executor.map')) >= {'application/vnd.jupyter.widget-view+json', 'image/png'}
    pixels = gdal.Open(str(SCENE)).ReadAsArray().astype(float)
    index = (pixels[3] - pixels[2]) / numpy.maximum(pixels[3] + pixels[2], 1)
    assert float(notebook.value(MEAN)) == pytest.approx(index.mean(), abs=1e-12)
    assert 'image/png' in kinds(notebook.run('timeline.py'))


def test_notebook_computes_with_what_its_cells_define_now(notebook):
    """A function is changed between two runs of a cell, and then a helper that it calls."""
    notebook.run('executor = ', TWO)
    notebook.run('def index', ('return (nir', 'return scale() * (nir'))
    means = []
    for helper in ('scale = lambda: 1', 'scale = lambda: 3', 'def scale(): return 5'):
        notebook.do(helper)
        notebook.run('executor.map')
        means.append(float(notebook.value(MEAN)))
    notebook.run('def index', ('return scale()', 'return 7'))
    notebook.run('executor.map')
    means.append(float(notebook.value(MEAN)))
    assert means == pytest.approx([factor * means[0] for factor in (1, 3, 5, 7)], abs=1e-12)


CELLS = """
class Tile:
    def area(self): return 1
SEEN, SCALE = [], {'by': 1}
def helper(tile): return SCALE['by'] * tile.area()
def look(tile):
    SEEN.append(tile)
    return type(tile) is Tile, helper(tile), len(SEEN)
ask = lambda tile: one.submit(look, tile).result()
old = Tile()
"""


def test_notebook_worker_keeps_what_no_cell_has_changed(notebook):
    """The helper is defined anew, then the class, and an object of the old class is passed."""
    notebook.do('import rios_awsbatch\none = rios_awsbatch.AWSBatchExecutor(1)' + CELLS)
    assert notebook.value('ask(old)') == '(True, 1, 1)'
    notebook.do('def helper(tile): return 10 * SCALE["by"] * tile.area()')
    assert notebook.value('ask(old)') == '(True, 10, 2)'
    notebook.do('class Tile:\n    def area(self): return 2')
    assert notebook.value('ask(old)') == '(False, 10, 3)'
    assert notebook.value('ask(Tile())') == '(True, 20, 4)'
    notebook.do('SCALE["by"] = 3')
    assert notebook.value('ask(old), ask(Tile())') == '((False, 30, 5), (True, 60, 6))'
    notebook.do('SEEN = []')        # as the script had it before
    assert notebook.value('ask(Tile())') == '(True, 60, 7)'
    notebook.do('SEEN = ["mine"]')
    assert notebook.value('ask(Tile())') == '(True, 60, 2)'
    with pytest.raises(notebook.error, match=r'helper\(tile\): 1 / 0'):     # the line of the cell
        notebook.do('def helper(tile): 1 / 0\nask(old)')
    notebook.do('one.shutdown()')


def test_notebook_cell_run_twice_leaves_no_worker_behind(notebook):
    notebook.run('def index')
    runs = []
    for _ in range(2):
        notebook.run('executor = ', TWO if not runs else ('', ''))
        runs.append(notebook.value('executor.run').strip("'"))
        for _ in range(2):
            assert 'image/png' in kinds(notebook.run('executor.map'))
    assert_nothing_left(runs[0])
    notebook.run('timeline.py')
    assert_nothing_left(runs[1])


def test_notebook_goes_on_after_an_interrupt(notebook):
    notebook.run('executor = ', TWO)
    notebook.do('import time')
    notebook.run('def index', ('    red, nir', '    time.sleep(1)\n    red, nir'))
    notebook.interrupt_when(lambda: notebook.cell('executor.map').outputs)
    with pytest.raises(notebook.error, match='KeyboardInterrupt'):
        notebook.run('executor.map')
    notebook.run('def index', ('time.sleep(1)', 'pass'))
    assert 'image/png' in kinds(notebook.run('executor.map'))
    assert notebook.value('bool(np.isfinite(result).all())') == 'True'
