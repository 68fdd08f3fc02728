"""
Pixels and where they are: blocks.py and mosaic_s3.py against what one process makes with GDAL alone.

What is here needs no AWS, but for a few cases that go through it.
"""
import itertools
import os
import re
import subprocess
import sys

import cloudpickle
import numpy
import pytest
from osgeo import gdal, gdal_array, osr

import rios_awsbatch
from tests.helpers import PATIENCE
from tests.test_examples import EXAMPLES

import blocks       # examples, whose folder test_examples has put on the path
import mosaic_s3
import pieces_s3

gdal.UseExceptions()
cloudpickle.register_pickle_by_value(sys.modules[__name__])

COLUMNS, ROWS = 43, 35
# All types of pixels that GDAL has, by their names.
TYPES = {gdal.GetDataTypeName(code): code for code in range(1, gdal.GDT_TypeCount)
         if gdal.GetDataTypeName(code) and gdal_array.GDALTypeCodeToNumericTypeCode(code)}
RPC = {
    'LINE_OFF': '16.5', 'SAMP_OFF': '20', 'LAT_OFF': '-8', 'LONG_OFF': '-35', 'HEIGHT_OFF': '10', 'LINE_SCALE': '17',
    'SAMP_SCALE': '21', 'LAT_SCALE': '0.1', 'LONG_SCALE': '0.1', 'HEIGHT_SCALE': '500',
    'LINE_NUM_COEFF': ' '.join(str(n / 8) for n in range(20)), 'LINE_DEN_COEFF': ' '.join(['1'] + ['0'] * 19),
    'SAMP_NUM_COEFF': ' '.join(str(-n / 4) for n in range(20)), 'SAMP_DEN_COEFF': ' '.join(['1'] + ['0.5'] * 19)}
PLACES = ('none', 'north-up', 'south-up', 'rotated', 'points', 'points and RPC', 'RPC')


def numpy_type(code):
    """A type of GDAL's as numpy has it; the complex integers have none."""
    return numpy.dtype(gdal_array.GDALTypeCodeToNumericTypeCode(code))


def nodatas(code):
    """What may be set as nodata, with what pixels of that type hold of it."""
    kind = numpy_type(code)
    yield None, None
    if kind.kind in 'iu':
        limits = numpy.iinfo(kind)
        middle = 2**53 + 1 if kind.itemsize == 8 else 100
        yield from ((value, value) for value in (int(limits.min), int(limits.max), middle))
        if kind.itemsize < 8:
            yield from ((value, None) for value in (float('nan'), 99.5, float(limits.min) - 1, float(limits.max) + 1))
    else:
        limits = numpy.finfo(kind)
        yield from ((value, kind.type(value).real.item()) for value in (
            float(limits.min), float(limits.max), 0.1, float('nan'), float('-inf')))


def locate(dataset, where):
    """Give a raster a place on Earth."""
    utm, degrees = osr.SpatialReference(), osr.SpatialReference()
    utm.ImportFromEPSG(32725)
    degrees.ImportFromEPSG(4326)
    transform = {'north-up': (288975.0, 30.0, 0, 9120000.0, 0, -30.0), 'south-up': (288975.0, 30.0, 0, 9120000.0, 0, 30.0),
                 'rotated': (288975.0, 25.0, 10.0, 9120000.0, 10.0, -25.0)}.get(where)
    if transform:
        dataset.SetSpatialRef(utm)
        dataset.SetGeoTransform(transform)
    if 'points' in where:
        dataset.SetGCPs([gdal.GCP(-35 + column / 1000 + row / 7777, -8 - row / 1000, 12.5 * column, column, row)
                         for column in (0, 20.5, COLUMNS) for row in (0, 17.25, ROWS)], degrees)
    if 'RPC' in where:
        dataset.SetMetadata(RPC, 'RPC')


def raster(path, code, bands=1, nodata=None, where='none', sides=(COLUMNS, ROWS)):
    """A GeoTIFF with pixels of all values that its type has."""
    random, kind = numpy.random.default_rng(1), numpy_type(code)
    shape = bands, *sides[::-1]
    if kind.kind in 'iu':
        limits = numpy.iinfo(kind)
        pixels = random.integers(limits.min, limits.max, shape, kind, endpoint=True)
        pixels.flat[:2] = limits.min, limits.max
    else:
        pixels = random.normal(0, 1000, shape).round().astype(kind)
        if 'CInt' not in gdal.GetDataTypeName(code):
            pixels.flat[:4] = numpy.finfo(kind).max, numpy.inf, numpy.nan, 0.1
        if kind.kind == 'c':
            pixels += (1j * random.normal(0, 1000, shape).round()).astype(kind)
    dataset = gdal.GetDriverByName('GTiff').Create(str(path), *sides, bands, code)
    dataset.WriteArray(pixels)
    locate(dataset, where)
    for number in range(1, bands + 1) if nodata is not None else ():
        dataset.GetRasterBand(number).SetNoDataValue(nodata)
    dataset = None
    return gdal.Open(str(path))


def assert_same_place(one, other, left=0, top=0):
    """They are in the same place on Earth, with the first pixel of `one` at that column and row of `other`."""
    transform = other.GetGeoTransform(can_return_null=True)
    if transform:
        x, y = gdal.ApplyGeoTransform(transform, left, top)
        transform = (x, *transform[1:3], y, *transform[4:])
    assert one.GetGeoTransform(can_return_null=True) == transform
    for mine, its in ((one.GetSpatialRef(), other.GetSpatialRef()), (one.GetGCPSpatialRef(), other.GetGCPSpatialRef())):
        assert (mine is None) == (its is None) and (mine is None or mine.IsSame(its))
    # A VRT keeps twelve digits of them.
    assert numpy.allclose(
        [(p.GCPX, p.GCPY, p.GCPZ, p.GCPPixel, p.GCPLine) for p in one.GetGCPs()],
        [(p.GCPX, p.GCPY, p.GCPZ, p.GCPPixel - left, p.GCPLine - top) for p in other.GetGCPs()], rtol=1e-11, atol=0)
    mine, its = one.GetMetadata('RPC'), other.GetMetadata('RPC')
    assert set(mine) >= set(its)
    for name, value in its.items():
        shift = {'SAMP_OFF': left, 'LINE_OFF': top}.get(name, 0)
        assert list(map(float, mine[name].split())) == [float(each) - shift for each in value.split()], name


def assert_same_pixels(one, other):
    mine, its = one.ReadAsArray(), other.ReadAsArray()
    assert mine.dtype == its.dtype and numpy.array_equal(mine, its, equal_nan=mine.dtype.kind in 'fc')
    for number in range(1, other.RasterCount + 1):
        values = [dataset.GetRasterBand(number).GetNoDataValue() for dataset in (one, other)]
        assert repr(values[0] if values[0] is None else mine.dtype.type(values[0])) == repr(
            values[1] if values[1] is None else mine.dtype.type(values[1]))


# ---------------------------------------------------------------------------------------------
# blocks.py
# ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize('name', TYPES)
def test_blocks_make_what_gdal_alone_makes(name):
    """Each type, nodata, number of bands and way to have a place."""
    path, alone, code = '/vsimem/by-blocks.tif', '/vsimem/alone.tif', TYPES[name]
    kind = numpy_type(code)
    for (nodata, held), bands, where in itertools.product(nodatas(code), (1, 3), PLACES):
        image = raster('/vsimem/image.tif', code, bands, nodata, where)
        windows = blocks.windows(image, 16)
        assert repr(blocks.nodata(image.GetRasterBand(bands))) == repr(held)
        with blocks.create(path, image, bands, kind, 16, blocks.nodata(image.GetRasterBand(1))) as output:
            blocks.write(output, windows, (blocks.read(image, window) for window in windows))
        made = gdal.Open(path)
        expected = gdal.Translate(alone, image, outputType=gdal_array.NumericTypeCodeToGDALTypeCode(kind.type),
                                  noData='none' if held is None else None)
        assert_same_pixels(made, expected)
        assert_same_place(made, image)


@pytest.mark.parametrize('name', TYPES)
def test_margin_is_of_neighbours_and_of_nodata_to_the_last_bit(name):
    code, margin = TYPES[name], 2
    for (nodata, held), bands in itertools.product(nodatas(code), (1, 3)):
        image = raster('/vsimem/image.tif', code, bands, nodata)
        whole = image.ReadAsArray().reshape(bands, ROWS, COLUMNS)
        padded = numpy.zeros((bands, ROWS + 2 * margin, COLUMNS + 2 * margin), whole.dtype)
        padded[:] = held or 0
        padded[:, margin:-margin, margin:-margin] = whole
        windows = blocks.windows(image, 16)
        # What is two pixels to the right and one up.
        results = (blocks.read(image, window, margin)[:, 1:-3, 4:] for window in windows)
        with blocks.create('/vsimem/moved.tif', image, bands, whole.dtype, 16) as output:
            blocks.write(output, windows, results)
        made = gdal.Open('/vsimem/moved.tif').ReadAsArray().reshape(whole.shape)
        assert numpy.array_equal(made, padded[:, 1:-3, 4:], equal_nan=made.dtype.kind in 'fc')


def test_each_band_has_its_own_nodata_and_type():
    """As those of a VRT may: no value loses bits, and the margin of each band is its own."""
    image = gdal.GetDriverByName('MEM').Create('', 20, 20, 0, options=[])
    for code, value, nodata in ((gdal.GDT_Int32, 2**31 - 1, -(2**31)), (gdal.GDT_Float64, 0.1, -1e300),
                                (gdal.GDT_Byte, 7, None), (gdal.GDT_Float32, 8, 1e300)):
        image.AddBand(code)
        band = image.GetRasterBand(image.RasterCount)
        band.Fill(value)
        if nodata is not None:
            band.SetNoDataValue(nodata)
    block = blocks.read(image, (0, 0, 20, 20), 1)
    assert block.dtype == numpy.float64
    assert [list(band[:2, 1]) for band in block] == [[-(2**31), 2**31 - 1], [-1e300, 0.1], [0, 7], [0, 8]]
    assert list(blocks.read(image, (0, 0, 20, 20), 1, [3])[0, :2, 1]) == [0, 7]


@pytest.mark.parametrize('given, kind', [
    ('bool', 'uint8'), ('int8', 'int16'), ('float16', 'float32'), ('longlong', None), ('>i2', None),
    ('complex128', None)])
def test_types_are_written_as_they_are_or_refused_with_one_that_holds_them(given, kind, tmp_path):
    image = raster('/vsimem/image.tif', gdal.GDT_Byte)
    pixels = numpy.arange(-6, 6).reshape(1, 3, 4).astype(given)
    code = gdal_array.NumericTypeCodeToGDALTypeCode(numpy.dtype(given).type)
    if code and numpy_type(code) == numpy.dtype(given):
        kind = None             # this GDAL has it
    if kind:
        with pytest.raises(ValueError, match='no GeoTIFF has pixels of the type {}; {} holds them'.format(given, kind)):
            blocks.create(tmp_path / 'refused.tif', image, dtype=given).__enter__()
        assert list(tmp_path.iterdir()) == []
    # A result of that type is right in an output that holds it.
    with blocks.create(tmp_path / 'made.tif', image, dtype=kind or given) as output:
        blocks.write(output, [(0, 0, 4, 3)], [pixels])
    made = gdal.Open(str(tmp_path / 'made.tif')).ReadAsArray(0, 0, 4, 3)
    assert made.dtype == numpy.dtype(kind or given).newbyteorder('=') and numpy.array_equal(made, pixels[0])


@pytest.mark.parametrize('result, dtype, said', [
    (lambda bands, rows, columns: numpy.zeros((bands, rows + 4, columns + 4)), 'float32', 'shape .*without a margin'),
    (lambda bands, rows, columns: numpy.zeros((rows, columns)), 'float32', 'shape .*as many bands'),
    (lambda bands, rows, columns: numpy.zeros((bands + 1, rows, columns)), 'float32', 'shape .*as many bands'),
    (lambda bands, rows, columns: None, 'float32', 'the shape .*return an array'),
    (lambda bands, rows, columns: numpy.full((bands, rows, columns), 256), 'uint8',
     'int64 numbers that pixels of uint8 do not'),
    (lambda bands, rows, columns: numpy.full((bands, rows, columns), -1), 'uint16',
     'int64 numbers that pixels of uint16 do not'),
    (lambda bands, rows, columns: numpy.full((bands, rows, columns), 'x'), 'float32', 'no pixels that hold'),
    (lambda bands, rows, columns: numpy.zeros((bands, rows, columns), 'c8'), 'float32',
     'complex64 numbers that pixels of float32 do not'),
    (lambda bands, rows, columns: numpy.zeros((bands, rows, columns)), 'int16',
     'float64 numbers that pixels of int16 do not'),
])
@pytest.mark.parametrize('several', [None, list, tuple])
def test_wrong_result_is_a_sentence_before_anything_is_written(result, dtype, said, several, tmp_path):
    """And no file is left. It is the second of two arrays that is wrong."""
    image, made = raster('/vsimem/image.tif', gdal.GDT_Byte, 2), []
    windows = blocks.windows(image, 16)

    def results():
        for window in windows:
            made.append(window)
            wrong = result(2, window[3], window[2])
            yield (numpy.zeros((2, window[3], window[2]), 'uint8'), wrong) if several else wrong
    with pytest.raises(ValueError, match=said):
        with blocks.create(tmp_path / 'first.tif', image, 2) as first, \
                blocks.create(tmp_path / 'second.tif', image, 2, dtype) as second:
            try:
                blocks.write(several([first, second]) if several else second, windows, results())
            finally:
                assert not any(output.ReadAsArray().any() for output in (first, second))
    assert len(made) == 1 and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('several', [list, tuple])
def test_wrong_number_of_results_is_a_sentence(several, tmp_path):
    image = raster('/vsimem/image.tif', gdal.GDT_Byte)
    window = 0, 0, COLUMNS, ROWS
    pixels = numpy.zeros((ROWS, COLUMNS))
    with blocks.create(tmp_path / '1.tif', image) as first, blocks.create(tmp_path / '2.tif', image) as second:
        with pytest.raises(ValueError, match='3 arrays, but there are 2 outputs'):
            blocks.write(several([first, second]), [window], [[pixels] * 3])
        blocks.write(several([first, second]), [window], [[pixels] * 2])
        for results, said in (
                ([], 'shorter'), ([pixels] * 2, 'longer'),
                ([numpy.zeros((ROWS + 4, COLUMNS + 4))], 'margin'), ([numpy.zeros((1, ROWS, COLUMNS - 1))], 'margin')):
            with pytest.raises(ValueError, match=said):
                blocks.write(first, [window], results)


def test_tile_size_that_tiff_does_not_have_is_a_sentence_and_leaves_no_file(tmp_path):
    with pytest.raises(ValueError, match='multiple of 16, not 100'):
        blocks.create(tmp_path / 'out.tif', raster('/vsimem/image.tif', gdal.GDT_Byte), size=100).__enter__()
    assert list(tmp_path.iterdir()) == []


def test_place_that_cannot_be_kept_is_a_sentence_before_the_first_block(tmp_path):
    image = raster('/vsimem/image.tif', gdal.GDT_Byte)
    image.SetMetadata({'X_DATASET': 'x.tif', 'Y_DATASET': 'y.tif'}, 'GEOLOCATION')
    with pytest.raises(ValueError, match='geolocation arrays.*gdalwarp'):
        with blocks.create(tmp_path / 'out.tif', image):
            raise AssertionError('no block may be asked for')
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------
# A file appears whole or not at all
# ---------------------------------------------------------------------------------------------

WRITES = '''
import sys
sys.path.insert(0, sys.argv[1])
import blocks
from osgeo import gdal
import numpy
gdal.UseExceptions()
image = gdal.GetDriverByName('MEM').Create('', 200, 200)
with blocks.create(sys.argv[2], image, dtype='uint8', size=16) as output:
    print('open', flush=True)
    for window in blocks.windows(image, 20):
        sys.stdin.readline()
        blocks.write(output, [window], [numpy.full((20, 20), int(sys.argv[3]))])
        print('written', flush=True)
    sys.stdin.readline()
print('closed', flush=True)
'''


def test_two_processes_with_the_same_output_each_make_the_whole_of_it(tmp_path):
    """The last to finish wins; neither sees anything of the other, nor of what was there before."""
    path = tmp_path / 'out.tif'
    path.write_bytes(b'there before')
    (tmp_path / 'out.tif.aux.xml').write_text('of the one that was there before')
    processes = [
        subprocess.Popen([sys.executable, '-c', WRITES, EXAMPLES, path, value], stdin=subprocess.PIPE,
                         stdout=subprocess.PIPE, text=True) for value in ('1', '2')]

    def step(process):
        process.stdin.write('\n')
        process.stdin.flush()
        return process.stdout.readline()
    assert [process.stdout.readline() for process in processes] == ['open\n'] * 2
    for _ in range(100):
        assert [step(process) for process in processes] == ['written\n'] * 2
    assert path.read_bytes() == b'there before'
    for process, value in zip(processes, (1, 2)):
        assert step(process) == 'closed\n'
        pixels = gdal.Open(str(path)).ReadAsArray()
        assert pixels.shape == (200, 200) and (pixels == value).all()
        process.stdin.close()
        assert process.wait(PATIENCE) == 0
        process.stdout.close()
    assert list(tmp_path.iterdir()) == [path]


def test_two_runs_of_the_smallest_script_at_once_make_one_whole_image(tmp_path):
    raster(tmp_path / 'in.tif', gdal.GDT_Byte, 2, sides=(600, 500)).FlushCache()
    before = set(tmp_path.iterdir())
    processes = [subprocess.Popen([sys.executable, EXAMPLES / 'smallest_gdal.py', tmp_path / 'in.tif', tmp_path / 'out.tif'])
                 for _ in range(2)]
    assert [process.wait(PATIENCE) for process in processes] == [0, 0]
    assert set(tmp_path.iterdir()) - before == {tmp_path / 'out.tif'}
    pixels = numpy.pad(gdal.Open(str(tmp_path / 'in.tif')).ReadAsArray(), ((0, 0), (2, 2), (2, 2)))
    mean = numpy.lib.stride_tricks.sliding_window_view(pixels, (5, 5), axis=(1, 2)).mean(axis=(3, 4))
    assert numpy.array_equal(gdal.Open(str(tmp_path / 'out.tif')).ReadAsArray(), mean.astype('float32'))


def test_output_is_closed_before_its_file_goes_though_an_exception_refers_to_it(tmp_path):
    image = raster('/vsimem/image.tif', gdal.GDT_Byte)
    with pytest.raises(KeyboardInterrupt) as raised:
        with blocks.create(tmp_path / 'out.tif', image) as output:
            blocks.write(output, [(0, 0, 3, 3)], [numpy.ones((3, 3))])
            assert len(list(tmp_path.iterdir())) == 1
            raise KeyboardInterrupt
    assert raised.tb is not None and list(tmp_path.iterdir()) == []
    with pytest.raises(TypeError):              # and no crash
        output.WriteArray(numpy.ones((3, 3)))


def test_sidecar_of_an_output_comes_along_and_that_of_another_goes(tmp_path, request):
    """GDAL may write what belongs to a GeoTIFF beside it."""
    image = raster('/vsimem/image.tif', gdal.GDT_Byte)
    path = tmp_path / 'out.tif'
    request.addfinalizer(lambda: gdal.SetConfigOption('GDAL_TIFF_INTERNAL_MASK', None))
    gdal.SetConfigOption('GDAL_TIFF_INTERNAL_MASK', 'NO')
    for sidecar in (True, False):
        with blocks.create(path, image) as output:
            if sidecar:
                output.CreateMaskBand(gdal.GMF_PER_DATASET)
                output.GetRasterBand(1).GetMaskBand().Fill(255)
        assert {each.name for each in tmp_path.iterdir()} == ({'out.tif', 'out.tif.msk'} if sidecar else {'out.tif'})
        assert gdal.Open(str(path)).GetRasterBand(1).GetMaskFlags() == (
            gdal.GMF_PER_DATASET if sidecar else gdal.GMF_ALL_VALID)


# ---------------------------------------------------------------------------------------------
# Through AWS Batch
# ---------------------------------------------------------------------------------------------

def moved(block):
    return block[:, 1:-3, 4:]


def test_workers_make_the_same_pixels_in_the_same_place(tmp_path):
    cases = [('Int64', 2**63 - 1, 'points'), ('UInt64', 2**64 - 1, 'rotated'), ('CFloat64', None, 'points and RPC'),
             ('Int16', -9999.5, 'south-up'), ('Float32', float('nan'), 'none')]
    with rios_awsbatch.AWSBatchExecutor(1) as executor:
        for name, nodata, where in cases:
            image = raster(tmp_path / 'image.tif', TYPES[name], 2, nodata, where)
            windows, held = blocks.windows(image, 16), blocks.nodata(image.GetRasterBand(1))
            read = [blocks.read(image, window, 2) for window in windows]
            for path, results in (('serial.tif', map(moved, read)), ('batch.tif', executor.map(moved, read))):
                with blocks.create(tmp_path / path, image, 2, read[0].dtype, 16, held) as output:
                    blocks.write(output, windows, results)
            serial, batch = (gdal.Open(str(tmp_path / path)) for path in ('serial.tif', 'batch.tif'))
            assert_same_pixels(batch, serial)
            assert_same_place(batch, image)


# ---------------------------------------------------------------------------------------------
# mosaic_s3.py, in this process
# ---------------------------------------------------------------------------------------------

def inner(pixels):
    return pixels[:, mosaic_s3.MARGIN:-mosaic_s3.MARGIN, mosaic_s3.MARGIN:-mosaic_s3.MARGIN]


@pytest.mark.parametrize('name', TYPES)
def test_pieces_and_their_vrt_make_what_gdal_alone_makes(name, monkeypatch):
    code, bands, size = TYPES[name], 2, 128
    kind = numpy_type(code)
    monkeypatch.setattr(pieces_s3, 'TILE', size)
    monkeypatch.setattr(pieces_s3, 'OPTIONS', ['BLOCKSIZE=128'] + pieces_s3.OPTIONS[1:])
    for attribute, value in (('compute', inner), ('BANDS', ('one', 'two')),
                             ('TYPE', gdal_array.NumericTypeCodeToGDALTypeCode(kind.type))):
        monkeypatch.setattr(mosaic_s3, attribute, value)
    held = [each for _, each in nodatas(code) if each is not None]
    for where, nodata in zip(PLACES, itertools.cycle(held)):
        monkeypatch.setattr(mosaic_s3, 'NODATA', nodata)
        image = raster('/vsimem/image.tif', code, bands, nodata, where, (200, 140))
        windows = blocks.windows(image, size)
        for window in windows:
            path = '/vsimem/pieces/' + pieces_s3.name(window)
            assert mosaic_s3.make_piece(path, window, '/vsimem/image.tif', {}, {}, size, False)
            assert_same_place(gdal.Open(path), image, *window[:2])
        pieces_s3.write_vrt('/vsimem/pieces/mosaic.vrt', image, windows, ('one', 'two'), nodata, mosaic_s3.TYPE)
        made = gdal.Open('/vsimem/pieces/mosaic.vrt')
        gdal.Translate('/vsimem/alone.vrt', image, outputType=mosaic_s3.TYPE).FlushCache()
        assert_same_pixels(made, gdal.Open('/vsimem/alone.vrt'))
        assert_same_place(made, image)


def test_result_that_is_no_piece_is_a_sentence(monkeypatch):
    raster('/vsimem/image.tif', gdal.GDT_Byte, 4)
    monkeypatch.setattr(mosaic_s3, 'compute', lambda pixels: pixels[:2].astype('float32'))
    with pytest.raises(ValueError, match='the shape .*without a margin'):
        mosaic_s3.make_piece('/vsimem/piece.tif', (0, 0, 16, 16), '/vsimem/image.tif', {}, {}, 512, False)
    assert gdal.VSIStatL('/vsimem/piece.tif') is None


def mosaic_of(tmp_path, sides, *options):
    """Ask for a mosaic of images with pixels of these sides; what is said before there is a worker."""
    paths = []
    for number, side in enumerate(sides):
        paths.append(tmp_path / '{}.tif'.format(number))
        image = gdal.GetDriverByName('GTiff').Create(str(paths[-1]), 60, 60, 4)
        image.SetGeoTransform((number * 1800, side, 0, 0, 0, -side))
        image = None
    environment = dict(os.environ, RIOS_AWSBATCH_STACK='NoSuch')
    return subprocess.run([sys.executable, EXAMPLES / 'mosaic_s3.py', *paths, tmp_path, *options], env=environment,
                          text=True, capture_output=True, timeout=PATIENCE), paths


def test_mosaic_of_different_resolutions_wants_to_know_which(tmp_path):
    done, paths = mosaic_of(tmp_path, (30, 30.00001, 10))
    assert done.returncode == 1 and not (tmp_path / 'input.vrt').exists()
    assert done.stderr == (
        'mosaic_s3.py: {} has pixels of 10 x 10, but {} of 30 x 30. Say what to take, by nearest neighbour: '
        '--resolution highest, lowest or average\n'.format(paths[2], paths[0]))
    for resolution, side in ((None, 30), ('highest', 10), ('lowest', 30), ('average', 20)):
        folder = tmp_path / str(resolution)
        folder.mkdir()
        done, paths = mosaic_of(folder, (30, 10) if resolution else (30, 30),
                                *(('--resolution', resolution) if resolution else ()))
        # It went on, but not to the workers.
        assert re.search('0.tif is on this computer, where workers do not see it: .* s3://', done.stderr)
        assert gdal.Open(str(folder / 'input.vrt')).GetGeoTransform()[1] == side
