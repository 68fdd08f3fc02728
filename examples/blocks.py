"""
Blocks of a raster, for main scripts with GDAL alone: windows, reading with a margin, writing as results come.

A block is a window (left, top, columns, rows), in pixels. Pixels are arrays of shape (bands, rows, columns).
What cannot be written as it is, is a ValueError that says so.
"""
import atexit
import contextlib
import functools
import os

import numpy as np
from osgeo import gdal, gdal_array

# The files that a GeoTIFF may consist of.
SIDES = '', '.aux.xml', '.ovr', '.msk'


def windows(dataset, size):
    """The blocks of a raster, row by row, of `size` pixels on each side; less at the right and lower edge."""
    return [
        (left, top, min(size, dataset.RasterXSize - left), min(size, dataset.RasterYSize - top))
        for top in range(0, dataset.RasterYSize, size)
        for left in range(0, dataset.RasterXSize, size)]


def read(dataset, window, margin=0, bands=None):
    """
    The pixels of a window and of `margin` pixels on each side, so that blocks join without a seam; of all
    bands, or of those with the numbers in `bands`. Outside the raster they are a band's nodata value, or 0.
    """
    left, top, columns, rows = window
    first_column, first_row = max(0, left - margin), max(0, top - margin)
    end_column = min(dataset.RasterXSize, left + columns + margin)
    end_row = min(dataset.RasterYSize, top + rows + margin)
    numbers = bands or range(1, dataset.RasterCount + 1)
    bands = [dataset.GetRasterBand(number) for number in numbers]
    pixels = dataset.ReadAsArray(
        first_column, first_row, end_column - first_column, end_row - first_row, band_list=list(numbers),
        buf_type=functools.reduce(gdal.DataTypeUnion, [band.DataType for band in bands]))
    block = np.empty((len(bands), rows + 2 * margin, columns + 2 * margin), pixels.dtype)
    for band, part in zip(bands, block):
        part[:] = nodata(band) or 0
    row, column = first_row - (top - margin), first_column - (left - margin)
    block[:, row:row + pixels.shape[-2], column:column + pixels.shape[-1]] = pixels
    return block


def nodata(band):
    """The value for "no data", as pixels hold it; None if it has none, or one that no pixel can hold."""
    value, kind = band.GetNoDataValue(), pixel_type(band)
    if value is None:
        return None
    if kind.kind in 'iu':
        limits = np.iinfo(kind)
        return int(value) if limits.min <= value <= limits.max and value == int(value) else None
    with np.errstate(over='ignore'):
        held = kind.type(value).real.item()
    return held if np.isinf(value) or not np.isinf(held) else None


def pixel_type(band):
    """The type of a band's pixels, as numpy has it."""
    return np.dtype(gdal_array.GDALTypeCodeToNumericTypeCode(band.DataType))


def holder(dtype):
    """The smallest type of pixels that holds all numbers of a type: itself, where GDAL has it."""
    for name in (dtype, 'u1', 'i2', 'i4', 'i8', 'f4', 'f8', 'c16'):
        kind = np.dtype(name).newbyteorder('=')
        code = gdal_array.NumericTypeCodeToGDALTypeCode(kind.type)
        # GDAL before 3.7 takes signed bytes for unsigned ones.
        if np.can_cast(dtype, kind) and gdal_array.GDALTypeCodeToNumericTypeCode(code) == kind.type:
            return kind
    raise ValueError(f'GDAL {gdal.__version__} has no pixels that hold numbers of the type {dtype}')


def place(output, like):
    """Say where on Earth a raster is: where `like` is."""
    transform, points = like.GetGeoTransform(can_return_null=True), like.GetGCPs()
    rpc = like.GetMetadata('RPC')
    if like.GetMetadata('GEOLOCATION') and not (transform or points or rpc):
        raise ValueError(f'{like.GetDescription()} has its place in geolocation arrays, which are not '
                         'copied: bring it to a grid first (gdalwarp -geoloc)')
    output.SetSpatialRef(like.GetSpatialRef())
    if transform:
        output.SetGeoTransform(transform)
    elif points:
        output.SetGCPs(points, like.GetGCPSpatialRef())
    if rpc:
        output.SetMetadata(rpc, 'RPC')


@contextlib.contextmanager
def create(path, like, bands=1, dtype='float32', size=256, nodata=None):
    """
    `with create(...) as output`: an empty GeoTIFF on the grid of the dataset `like`, in tiles of `size`
    pixels, a multiple of 16. It takes its name when it is whole, at the end of the `with`; an error leaves
    no file.
    """
    path, dtype, kind = os.fspath(path), np.dtype(dtype), holder(dtype)
    if kind != dtype.newbyteorder('='):
        raise ValueError(f'{path}: no GeoTIFF has pixels of the type {dtype}; {kind} holds them')
    if size % 16:
        raise ValueError(f'{path}: the size of tiles must be a multiple of 16, not {size}')
    # Another process may write the same file. On S3 it appears whole anyway.
    part = path if path.startswith('/vsi') else f'{path}.{os.urandom(4).hex()}.part'
    output = gdal.GetDriverByName('GTiff').Create(
        part, like.RasterXSize, like.RasterYSize, bands, gdal_array.NumericTypeCodeToGDALTypeCode(kind.type),
        ['TILED=YES', f'BLOCKXSIZE={size}', f'BLOCKYSIZE={size}', 'INTERLEAVE=BAND', 'BIGTIFF=IF_SAFER',
         'COMPRESS=DEFLATE', f'PREDICTOR={dict(f=3, c=1).get(kind.kind, 2)}', 'NUM_THREADS=ALL_CPUS'])
    abandon = functools.partial(end, output, part)
    atexit.register(abandon)        # where a second Ctrl-C comes while this ends
    try:
        place(output, like)
        if nodata is not None:
            for number in range(1, bands + 1):
                output.GetRasterBand(number).SetNoDataValue(nodata)
        yield output
        output.FlushCache()
    except BaseException:
        abandon()
        atexit.unregister(abandon)
        raise
    end(output)
    atexit.unregister(abandon)
    for side in SIDES if part != path else ():
        if os.path.exists(part + side):
            os.replace(part + side, path + side)
        elif os.path.exists(path + side):       # of what was there before
            os.remove(path + side)


def end(dataset, path=None):
    """Close a dataset, though the frames of an exception may refer to it, and remove the file `path`."""
    dataset.this = None     # one step: with two, a Ctrl-C between them is a crash
    for side in SIDES if path else ():
        with contextlib.suppress(RuntimeError):
            gdal.Unlink(path + side)


def write(outputs, windows, results, done=lambda: None):
    """
    Write results, which come in the order of the windows, each as it comes; `done` is called after each.
    A result is an array for the dataset `outputs`, or a sequence of arrays for a list of datasets.
    """
    several = isinstance(outputs, (list, tuple))
    outputs = outputs if several else [outputs]
    for window, result in zip(windows, results, strict=True):
        result = result if several else [result]
        if len(result) != len(outputs):
            raise ValueError(f'a result has {len(result)} arrays, but there are {len(outputs)} outputs')
        arrays = [fitting(pixels, window, output.RasterCount, pixel_type(output.GetRasterBand(1)))
                  for pixels, output in zip(result, outputs)]
        for output, pixels in zip(outputs, arrays):
            output.WriteArray(pixels, window[0], window[1])
        done()


def fitting(pixels, window, bands, kind):
    """A result as GDAL takes it; ValueError where that would not fit, be rounded, or clipped."""
    pixels, shape = np.asarray(pixels), (bands, window[3], window[2])
    if pixels.shape != shape and (bands > 1 or pixels.shape != shape[1:]):
        raise ValueError(f'a result has the shape {pixels.shape}, but its place (bands, rows, columns) is '
                         f'{shape}: return an array with as many bands as the output, without a margin')
    if not (np.can_cast(pixels.dtype, kind, 'same_kind') if pixels.dtype.kind in 'fc' else kind.kind in 'fc'
            or np.can_cast(pixels.dtype, kind) or np.array_equal(pixels, pixels.astype(kind))):
        raise ValueError(f'a result has {pixels.dtype} numbers that pixels of {kind} do not hold: give the '
                         'output another type (dtype), or round or clip in the function')
    return pixels.astype(holder(pixels.dtype), copy=False)
