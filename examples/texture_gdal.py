#!/usr/bin/env python3
"""
Texture of a satellite image, computed on AWS Batch, with GDAL alone.

Copy this script and put your own work in the place of `texture_block`: it gets arrays, it returns an
array, and it runs unchanged in one process (--serial) or on as many workers as the stack allows. The
image is read and written here, block by block, so that an image of any size needs little memory.

    texture_gdal.py landsat7_olinda.tif texture.tif --workers 4 --preview texture.png
"""

import argparse
import contextlib
import functools
import os
import sys
import time

import cloudpickle
import numpy as np
from osgeo import gdal, gdal_array

import preview
import progress
import rios_awsbatch
import texture

gdal.UseExceptions()
# Workers have numpy and GDAL, but not our own texture.py: send it along with the function.
cloudpickle.register_pickle_by_value(texture)


def main():
    args = parse_arguments()
    try:
        image = Image(args.input, args.red, args.nir)
        if os.path.realpath(args.input) == os.path.realpath(args.output):
            raise ValueError(f'{args.output} is the input: choose another name for the output')
        blocksize = args.blocksize or image.good_blocksize()
        # It takes its name when it is whole.
        part = args.output + '.part'
        output = create_output(part, image, args.radius, blocksize)
    except (ValueError, RuntimeError) as error:
        sys.exit(f'{os.path.basename(sys.argv[0])}: {error}')

    work = functools.partial(texture_pixels, nodata=image.nodata, radii=args.radius)
    windows = image.windows(blocksize)
    pixels = (image.read(window, max(args.radius)) for window in windows)
    try:
        start = time.monotonic()
        if args.serial:
            with progress.Progress(len(windows)) as line:
                write_blocks(output, windows, map(work, pixels), line)
            by = 'by one process'
        else:
            with rios_awsbatch.AWSBatchExecutor(max_workers=args.workers) as executor, \
                    progress.Progress(len(windows), executor.stats) as line:
                # Only a few blocks are under way at a time: reading never runs far ahead of the work.
                results = executor.map(work, pixels, buffersize=4 * args.workers)
                write_blocks(output, windows, results, line)
                by = f'by {args.workers} workers ({blocks_per_worker(executor)})'
        seconds = time.monotonic() - start
        finish_output(output)
    except BaseException as error:
        output = None
        os.remove(part)
        if isinstance(error, rios_awsbatch.AWSBatchException):
            sys.exit(f'{os.path.basename(sys.argv[0])}: {error}')
        raise
    output = None
    os.replace(part, args.output)

    print(f'{args.output}: {len(windows)} blocks in {seconds:.1f} s {by}')
    if args.preview:
        preview.write(args.input, (args.nir, args.red, args.green), args.output, args.preview)
        print(f'{args.preview}: false colour, NDVI, texture')
    if args.check:
        check(args.output, image, windows, work, max(args.radius))


def texture_pixels(pixels, nodata, radii):
    """What a worker does: `pixels` is a block's red and near infrared with its margin."""
    red, nir = pixels
    return texture.texture_block(red, nir, nodata, radii)


class Image:
    """The input: its size, its place on Earth, and two of its bands."""

    def __init__(self, path, *bands):
        self.dataset = gdal.Open(path)
        self.columns = self.dataset.RasterXSize
        self.rows = self.dataset.RasterYSize
        count = self.dataset.RasterCount
        if max(bands) > count:
            raise ValueError(
                f'{path} has {count} band{"s" * (count != 1)}, so there is no band {max(bands)}: '
                'say with --red and --nir which bands hold red and near infrared')
        self.bands = [self.dataset.GetRasterBand(band) for band in bands]
        self.nodata = nodata_value(self.bands[0])

    def good_blocksize(self):
        """256 pixels, or less for a small image, so that there is something to share out."""
        side = (self.columns * self.rows / 64) ** 0.5
        return max(16, min(256, round(side / 16) * 16))

    def windows(self, size):
        """The blocks, row by row: left, top, columns, rows."""
        return [
            (left, top, min(size, self.columns - left), min(size, self.rows - top))
            for top in range(0, self.rows, size)
            for left in range(0, self.columns, size)]

    def read(self, window, margin):
        """The bands in a window and in a margin around it, which outside the image holds `nodata` or 0."""
        left, top, columns, rows = window
        first_column = max(0, left - margin)
        first_row = max(0, top - margin)
        columns_read = min(self.columns, left + columns + margin) - first_column
        rows_read = min(self.rows, top + rows + margin) - first_row
        before = (first_row - (top - margin), first_column - (left - margin))
        outside = [
            (before[0], rows + 2 * margin - rows_read - before[0]),
            (before[1], columns + 2 * margin - columns_read - before[1])]
        fill = 0 if self.nodata is None else self.nodata
        return np.stack([
            np.pad(band.ReadAsArray(first_column, first_row, columns_read, rows_read), outside,
                   constant_values=fill)
            for band in self.bands])


def nodata_value(band):
    """The band's value for "no data" as its pixels hold it; None if it has none, or one that no pixel can hold."""
    value = band.GetNoDataValue()
    pixel_type = gdal_array.GDALTypeCodeToNumericTypeCode(band.DataType)
    if value is None:
        return None
    if np.issubdtype(pixel_type, np.integer):
        limits = np.iinfo(pixel_type)
        if not limits.min <= value <= limits.max:
            return None
    return float(pixel_type(value))


def create_output(path, image, radii, blocksize):
    """An empty GeoTIFF on the same grid, in tiles of the size of a block."""
    names = texture.band_names(radii)
    output = gdal.GetDriverByName('GTiff').Create(
        path, image.columns, image.rows, len(names), gdal.GDT_Float32,
        ['TILED=YES', f'BLOCKXSIZE={blocksize}', f'BLOCKYSIZE={blocksize}',
         'COMPRESS=DEFLATE', 'PREDICTOR=3', 'INTERLEAVE=BAND', 'BIGTIFF=IF_SAFER'])
    output.SetSpatialRef(image.dataset.GetSpatialRef())
    output.SetGeoTransform(image.dataset.GetGeoTransform())
    for number, name in enumerate(names, start=1):
        output.GetRasterBand(number).SetDescription(name)
        output.GetRasterBand(number).SetNoDataValue(texture.NODATA)
    return output


def write_blocks(output, windows, results, line):
    """Results come in the order of the windows."""
    for window, result in zip(windows, results):
        output.WriteArray(result, window[0], window[1])
        line.step()


def finish_output(output):
    """Statistics and overviews, so that a GIS shows the image at once."""
    output.FlushCache()
    for number in range(1, output.RasterCount + 1):
        band = output.GetRasterBand(number)
        # An image without a single valid pixel has no statistics.
        with contextlib.suppress(RuntimeError):
            band.ComputeStatistics(False)
    factors = [2 ** n for n in range(1, 12) if max(output.RasterXSize, output.RasterYSize) >> n > 128]
    output.BuildOverviews('AVERAGE', factors)


def check(path, image, windows, work, margin):
    """Compute every block again in this process, and compare each pixel with the file's."""
    output = gdal.Open(path)
    start = time.monotonic()
    differing = 0
    with progress.Progress(len(windows)) as line:
        for window in windows:
            expected = work(image.read(window, margin))
            differing += np.count_nonzero((output.ReadAsArray(*window) != expected).any(axis=0))
            line.step()
    seconds = time.monotonic() - start
    total = image.columns * image.rows
    print(f'checked in one process ({seconds:.1f} s): {differing} of {total} pixels differ')
    if differing:
        sys.exit(1)


def blocks_per_worker(executor):
    counts = executor.stats()['blocks_per_worker']
    return 'blocks each: ' + ', '.join(str(counts[worker]) for worker in sorted(counts))


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('input', help='a raster that GDAL reads, with a red and a near infrared band')
    parser.add_argument('output', help='the GeoTIFF to write')
    parser.add_argument('--workers', type=positive, default=4, help='jobs on AWS Batch (default: 4)')
    parser.add_argument(
        '--blocksize', type=positive,
        help='pixels on each side of a block, a multiple of 16 (default: 256, less for a small image)')
    parser.add_argument(
        '--radius', type=positive, nargs='+', default=texture.RADII,
        help='a window of 2 * RADIUS + 1 pixels on each side, several for several windows (default: '
             f'{" ".join(str(radius) for radius in texture.RADII)})')
    parser.add_argument('--red', type=positive, default=3, help='band number of red (default: 3)')
    parser.add_argument('--nir', type=positive, default=4, help='of near infrared (default: 4)')
    parser.add_argument('--green', type=positive, default=2, help='of green, for the preview (default: 2)')
    parser.add_argument('--preview', metavar='PNG', help='draw input and output side by side')
    parser.add_argument('--serial', action='store_true', help='in this process, without AWS')
    parser.add_argument(
        '--check', action='store_true',
        help='compute it again in this process and compare every pixel; exit status 1 if one differs')
    args = parser.parse_args()
    if args.blocksize and args.blocksize % 16:
        parser.error(f'argument --blocksize: {args.blocksize} is not a multiple of 16')
    return args


def positive(text):
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f'{number} is not 1 or more')
    return number


if __name__ == '__main__':
    main()
