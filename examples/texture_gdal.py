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
from osgeo import gdal

import blocks
import preview
import progress
import rios_awsbatch
import texture

gdal.UseExceptions()
# Workers have numpy and GDAL, but not our own texture.py: send it along with the function.
cloudpickle.register_pickle_by_value(texture)


def main():
    args = parse_arguments()
    bands, margin = [args.red, args.nir], max(args.radius)
    with contextlib.ExitStack() as stack:
        try:
            image = open_image(args.input, bands)
            if os.path.realpath(args.input) == os.path.realpath(args.output):
                raise ValueError(f'{args.output} is the input: choose another name for the output')
            blocksize = args.blocksize or good_blocksize(image)
            output = stack.enter_context(create_output(args.output, image, args.radius, blocksize))
        except (ValueError, RuntimeError) as error:
            sys.exit(f'{os.path.basename(sys.argv[0])}: {error}')

        nodata = blocks.nodata(image.GetRasterBand(args.red))
        work = functools.partial(texture_pixels, nodata=nodata, radii=args.radius)
        windows = blocks.windows(image, blocksize)
        pixels = (blocks.read(image, window, margin, bands) for window in windows)
        start = time.monotonic()
        if args.serial:
            with progress.Progress(len(windows)) as line:
                blocks.write(output, windows, map(work, pixels), line.step)
            by = 'by one process'
        else:
            by = compute_on_aws(args.workers, work, pixels, windows, output)
        seconds = time.monotonic() - start
        finish_output(output)

    print(f'{args.output}: {len(windows)} blocks in {seconds:.1f} s {by}')
    if args.preview:
        preview.write(args.input, (args.nir, args.red, args.green), args.output, args.preview)
        print(f'{args.preview}: false colour (plants red), NDVI (green), texture (rough is bright)')
    if args.check:
        check(args.output, windows, lambda window: work(blocks.read(image, window, margin, bands)))


def compute_on_aws(workers, work, pixels, windows, output):
    """Have the blocks computed, and write them; who did it."""
    try:
        with rios_awsbatch.AWSBatchExecutor(max_workers=workers) as executor, \
                progress.Progress(len(windows), executor.stats) as line:
            # Only a few blocks are under way at a time: reading never runs far ahead of the work.
            results = executor.map(work, pixels, buffersize=4 * workers)
            blocks.write(output, windows, results, line.step)
            return f'by {workers} workers ({blocks_per_worker(executor)})'
    except rios_awsbatch.AWSBatchException as error:
        sys.exit(f'{os.path.basename(sys.argv[0])}: {error}')


def texture_pixels(pixels, nodata, radii):
    """What a worker does: `pixels` is a block's red and near infrared with its margin."""
    red, nir = pixels
    return texture.texture_block(red, nir, nodata, radii)


def open_image(path, bands):
    """The input, which must have these bands."""
    image = gdal.Open(path)
    count = image.RasterCount
    if max(bands) > count:
        raise ValueError(
            f'{path} has {count} band{"s" * (count != 1)}, so there is no band {max(bands)}: '
            'say with --red and --nir which bands hold red and near infrared')
    return image


def good_blocksize(image):
    """256 pixels, or less for a small image, so that there is something to share out."""
    side = (image.RasterXSize * image.RasterYSize / 64) ** 0.5
    return max(16, min(256, round(side / 16) * 16))


@contextlib.contextmanager
def create_output(path, image, radii, blocksize):
    """An empty GeoTIFF with a band for each measure."""
    names = texture.band_names(radii)
    with blocks.create(path, image, len(names), size=blocksize, nodata=texture.NODATA) as output:
        for number, name in enumerate(names, start=1):
            output.GetRasterBand(number).SetDescription(name)
        yield output


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


def check(path, windows, compute):
    """Compute every block again in this process, and compare each pixel with the file's."""
    output = gdal.Open(path)
    start = time.monotonic()
    differing = 0
    with progress.Progress(len(windows)) as line:
        for window in windows:
            differing += np.count_nonzero((output.ReadAsArray(*window) != compute(window)).any(axis=0))
            line.step()
    seconds = time.monotonic() - start
    total = output.RasterXSize * output.RasterYSize
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
