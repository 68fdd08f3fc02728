"""
Blocks of a raster, for main scripts with GDAL alone: windows, reading with a margin, writing as results come.

A block is a window (left, top, columns, rows), in pixels. Pixels are arrays of shape (bands, rows, columns).
"""

import numpy as np
from osgeo import gdal, gdal_array


def windows(dataset, size):
    """The blocks of a raster, row by row, of `size` pixels on each side; less at the right and lower edge."""
    return [
        (left, top, min(size, dataset.RasterXSize - left), min(size, dataset.RasterYSize - top))
        for top in range(0, dataset.RasterYSize, size)
        for left in range(0, dataset.RasterXSize, size)]


def read(dataset, window, margin=0, bands=None):
    """
    The pixels of a window and of `margin` pixels on each side, so that blocks join without a seam; of all
    bands, or of those with the numbers in `bands`. Outside the raster they are its nodata value, or 0.
    """
    left, top, columns, rows = window
    first_column, first_row = max(0, left - margin), max(0, top - margin)
    end_column = min(dataset.RasterXSize, left + columns + margin)
    end_row = min(dataset.RasterYSize, top + rows + margin)
    bands = bands or list(range(1, dataset.RasterCount + 1))
    pixels = dataset.ReadAsArray(
        first_column, first_row, end_column - first_column, end_row - first_row, band_list=bands)
    outside = [
        (0, 0),
        (first_row - (top - margin), top + rows + margin - end_row),
        (first_column - (left - margin), left + columns + margin - end_column)]
    fill = nodata(dataset.GetRasterBand(bands[0]))
    return np.pad(pixels.reshape(len(bands), *pixels.shape[-2:]), outside, constant_values=fill or 0)


def nodata(band):
    """The value for "no data" as its pixels hold it; None if it has none, or one that no pixel can hold."""
    value = band.GetNoDataValue()
    pixel_type = gdal_array.GDALTypeCodeToNumericTypeCode(band.DataType)
    if value is None:
        return None
    if np.issubdtype(pixel_type, np.integer):
        limits = np.iinfo(pixel_type)
        if not limits.min <= value <= limits.max:
            return None
    return float(pixel_type(value))


def create(path, like, bands=1, dtype='float32', size=256, nodata=None):
    """An empty GeoTIFF on the grid of the dataset `like`, in tiles of `size` pixels, a multiple of 16."""
    dtype = np.dtype(dtype)
    output = gdal.GetDriverByName('GTiff').Create(
        path, like.RasterXSize, like.RasterYSize, bands, gdal_array.NumericTypeCodeToGDALTypeCode(dtype.type),
        ['TILED=YES', f'BLOCKXSIZE={size}', f'BLOCKYSIZE={size}', 'INTERLEAVE=BAND', 'BIGTIFF=IF_SAFER',
         'COMPRESS=DEFLATE', f'PREDICTOR={3 if dtype.kind == "f" else 2}', 'NUM_THREADS=ALL_CPUS'])
    output.SetSpatialRef(like.GetSpatialRef())
    output.SetGeoTransform(like.GetGeoTransform())
    if nodata is not None:
        for number in range(1, bands + 1):
            output.GetRasterBand(number).SetNoDataValue(nodata)
    return output


def write(outputs, windows, results, done=lambda: None):
    """
    Write results, which come in the order of the windows, each as it comes; `done` is called after each.
    A result is an array for the dataset `outputs`, or a sequence of arrays for a list of datasets.
    """
    for window, result in zip(windows, results):
        several = isinstance(outputs, list)
        for output, pixels in zip(outputs, result) if several else [(outputs, result)]:
            output.WriteArray(pixels, window[0], window[1])
        done()
