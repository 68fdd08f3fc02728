"""Rasters on one pixel grid, for the two doubles of RIOS beside this: read with a margin, and written."""
import collections
import math

import numpy
from osgeo import gdal, gdal_array

gdal.UseExceptions()
FileInfo = collections.namedtuple('FileInfo', 'isVector nodata')
Grid = collections.namedtuple('Grid', 'transform projection nrows ncols')


class CUIProgressBar:
    totalsteps = 100

    def setTotalSteps(self, steps):
        self.totalsteps = steps

    def setProgress(self, progress):
        print('{}%'.format(int(progress / self.totalsteps * 100)), flush=True)


class NamedFiles:
    """Attributes that are a file name or a list of them; iterated, (name, number or None, file name)."""
    def __iter__(self):
        for name, entry in vars(self).items():
            if isinstance(entry, list):
                yield from ((name, number, filename) for number, filename in enumerate(entry))
            else:
                yield name, None, entry


class NamedBlocks:
    """The arrays of one block under the names of their files; indexed by (name, number or None)."""
    def __init__(self, files=None):
        for name, entry in vars(files).items() if files else ():
            setattr(self, name, [None] * len(entry) if isinstance(entry, list) else None)

    def __getitem__(self, key):
        name, number = key
        return vars(self)[name] if number is None else vars(self)[name][number]

    def __setitem__(self, key, array):
        name, number = key
        if number is None:
            setattr(self, name, array)
        else:
            getattr(self, name)[number] = array


class Info:
    """What a user function is told of its block."""
    def __init__(self, grid, window, overlap, top, left, nrows, ncols):
        self.grid, self.window, self.overlap = grid, window, overlap
        self.nrows, self.ncols = nrows, ncols
        self.xblock, self.yblock = left // window, top // window
        self.loggingstream = None

    def getTotalBlocks(self):
        return math.ceil(self.grid.ncols / self.window), math.ceil(self.grid.nrows / self.window)

    def getBlockCount(self):
        return self.xblock, self.yblock

    def isLastBlock(self):
        return (self.xblock + 1, self.yblock + 1) == self.getTotalBlocks()


def file_info(filename, error):
    """Whether a file is a vector, and the null values of its bands; raises `error` if GDAL cannot open it."""
    for flag, isVector in ((gdal.OF_RASTER, False), (gdal.OF_VECTOR, True)):
        try:
            dataset = gdal.OpenEx(filename, flag)
        except RuntimeError:
            continue
        bands = range(0 if isVector else dataset.RasterCount)
        return FileInfo(isVector, [dataset.GetRasterBand(band + 1).GetNoDataValue() for band in bands])
    raise error("Unable to open '{}'".format(filename))


def grid_of(filename):
    dataset = gdal.Open(filename)
    return Grid(dataset.GetGeoTransform(), dataset.GetProjection(), dataset.RasterYSize, dataset.RasterXSize)


def blocks_of(grid, window):
    """(top, left, nrows, ncols) of each block, row by row."""
    return [(top, left, min(window, grid.nrows - top), min(window, grid.ncols - left))
            for top in range(0, grid.nrows, window) for left in range(0, grid.ncols, window)]


def create(filename, grid, bands, dtype):
    dataset = gdal.GetDriverByName('GTiff').Create(
        filename, grid.ncols, grid.nrows, bands, gdal_array.NumericTypeCodeToGDALTypeCode(dtype))
    dataset.SetGeoTransform(grid.transform)
    dataset.SetProjection(grid.projection)
    return dataset


def rasterize(filename, grid, temporary):
    """Burn 1 into a raster of the whole grid, in a temporary file; opened."""
    dataset = create(temporary, grid, 1, numpy.uint8)
    gdal.Rasterize(dataset, filename, bands=[1], burnValues=[1])
    dataset = None
    return gdal.Open(temporary)


def read(dataset, top, left, nrows, ncols, margin):
    """A block and its margin (bands, rows, columns), zero outside the raster."""
    bands = [dataset.GetRasterBand(number + 1) for number in range(dataset.RasterCount)]
    dtype = gdal_array.GDALTypeCodeToNumericTypeCode(bands[0].DataType)
    array = numpy.zeros((len(bands), nrows + 2 * margin, ncols + 2 * margin), dtype)
    first, last = max(0, top - margin), min(dataset.RasterYSize, top + nrows + margin)
    west, east = max(0, left - margin), min(dataset.RasterXSize, left + ncols + margin)
    inside = (slice(first - top + margin, last - top + margin),
              slice(west - left + margin, east - left + margin))
    for number, band in enumerate(bands):
        array[number][inside] = band.ReadAsArray(west, first, east - west, last - first)
    return array


class Writer:
    """The output files, which are made when the first block is written."""
    def __init__(self, outfiles, grid, margin):
        self.outfiles, self.grid, self.margin, self.datasets = outfiles, grid, margin, {}

    def write(self, outputs, top, left):
        for name, number, filename in self.outfiles:
            array = outputs[name, number]
            if self.margin:
                array = array[:, self.margin:-self.margin, self.margin:-self.margin]
            if filename not in self.datasets:
                self.datasets[filename] = create(filename, self.grid, len(array), array.dtype)
            self.datasets[filename].WriteArray(array, left, top)
