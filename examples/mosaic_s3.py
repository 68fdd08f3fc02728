#!/usr/bin/env python3
"""
A large image or mosaic on S3, computed on AWS Batch, with GDAL alone: the workers read and write on S3
themselves. This script hands out windows and gets short answers, so it may run on a laptop.

    mosaic_s3.py s3://mybucket/scenes/a.tif s3://mybucket/scenes/b.tif s3://mybucket/ndvi --workers 50

The last word is the folder of the output, the others are taken as one mosaic, the last on top. Each block becomes
a Cloud Optimized GeoTIFF in the folder; mosaic.vrt, beside them, is all of them as one image, which QGIS opens
from S3, and mosaic.tif (--cog) is one file. A block that two workers compute does no harm: an object on S3 appears
whole or not at all. --resume keeps the pieces of an earlier run that the same input, window, function and
parameters have made.

Copy it with blocks.py, progress.py and cog_s3.py. For your own work change what stands above main(): compute(),
the margin that it needs, what it returns, and its parameters in parse_arguments().
"""

import argparse
import functools
import hashlib
import inspect
import json
import os
import re
import sys

import cloudpickle
import numpy as np
from osgeo import gdal, gdal_array

import blocks
import cog_s3
import progress
import rios_awsbatch

gdal.UseExceptions()
# Workers have numpy and GDAL, but not our own modules: send them along with the function.
cloudpickle.register_pickle_by_value(blocks)
cloudpickle.register_pickle_by_value(cog_s3)

MARGIN = 2
BANDS = ('NDVI', 'NDVI, mean of 5 x 5 pixels')
NODATA = -9999.0


def compute(pixels, red, nir):
    """
    What a worker does with a block: `pixels`, shape (bands, rows + 2 * MARGIN, columns + 2 * MARGIN), holds all
    bands of the input. Returns float32, shape (len(BANDS), rows, columns).
    """
    red, nir = pixels[red - 1].astype(np.float32), pixels[nir - 1].astype(np.float32)
    known = red + nir > 0
    ndvi = np.divide(nir - red, nir + red, out=np.zeros_like(red), where=known)
    rows, columns = (side - 2 * MARGIN for side in ndvi.shape)
    around = [np.s_[y:y + rows, x:x + columns] for y in range(2 * MARGIN + 1) for x in range(2 * MARGIN + 1)]
    mean = sum(ndvi[part] for part in around) / np.maximum(sum(known[part].astype(np.float32) for part in around), 1)
    centre = around[len(around) // 2]
    return np.where(known[centre], np.stack([ndvi[centre], mean]), np.float32(NODATA))


def main():
    args = parse_arguments()
    parameters = {'red': args.red, 'nir': args.nir}
    try:
        made_of = {
            'INPUT': identity(args.input), 'PARAMETERS': json.dumps([parameters, MARGIN, args.blocksize]),
            'FUNCTION': hashlib.sha256(inspect.getsource(compute).encode()).hexdigest()}
        source = args.input[0]
        if len(args.input) > 1:
            source = args.output + '/input.vrt'
            gdal.BuildVRT(source, args.input, strict=True).FlushCache()
        image = gdal.Open(source)
        windows = blocks.windows(image, args.blocksize)
        work = functools.partial(
            make_piece, source=source, folder=args.output, blocksize=args.blocksize, parameters=parameters,
            made_of=made_of, resume=args.resume)
        if args.serial:
            with progress.Progress(len(windows)) as line:
                made = count(map(work, windows), line)
        else:
            with rios_awsbatch.AWSBatchExecutor(max_workers=args.workers) as executor, \
                    progress.Progress(len(windows), executor.stats) as line:
                made = count(executor.map(work, windows, buffersize=10 * args.workers), line)
        vrt = args.output + '/mosaic.vrt'
        cog_s3.put(vrt, vrt_of_pieces(image, windows).encode())
        print(f'{vrt}: {made} blocks computed, {len(windows) - made} kept')
        if args.cog:
            pieces = [(f'{args.output}/{piece_name(window)}', window) for window in windows]
            cog_s3.join(args.output + '/mosaic.tif', pieces, args.blocksize, vrt)
            print(f'{args.output}/mosaic.tif: one Cloud Optimized GeoTIFF')
    except (RuntimeError, rios_awsbatch.AWSBatchException) as error:
        sys.exit(f'{os.path.basename(sys.argv[0])}: {error}')


def make_piece(window, source, folder, blocksize, parameters, made_of, resume):
    """In a worker: compute a block and write it. True, or False where its piece is there already."""
    path = f'{folder}/{piece_name(window)}'
    made_of = dict(made_of, WINDOW=str(window))
    if resume and gdal.VSIStatL(path) and made_of.items() <= gdal.Open(path).GetMetadata().items():
        return False
    image = gdal.Open(source)
    piece = gdal_array.OpenArray(compute(blocks.read(image, window, MARGIN), **parameters))
    _, across, across_y, _, down_x, down = image.GetGeoTransform()
    x, y = gdal.ApplyGeoTransform(image.GetGeoTransform(), *window[:2])
    piece.SetGeoTransform((x, across, across_y, y, down_x, down))
    piece.SetSpatialRef(image.GetSpatialRef())
    piece.SetMetadata(made_of)
    for number, name in enumerate(BANDS, start=1):
        piece.GetRasterBand(number).SetDescription(name)
        piece.GetRasterBand(number).SetNoDataValue(NODATA)
    cog_s3.write(path, piece, blocksize)
    return True


def piece_name(window):
    left, top = window[:2]
    return f'{top:07d}_{left:07d}.tif'


def count(results, line):
    """How many of the results are true."""
    made = 0
    for result in results:
        made += result
        line.step()
    return made


def identity(paths):
    """Something that changes when one of the inputs does."""
    stats = [(path, gdal.VSIStatL(path)) for path in paths]
    text = repr([(path, stat and (stat.size, stat.mtime)) for path, stat in stats])
    return hashlib.sha256(text.encode()).hexdigest()


def vrt_of_pieces(image, windows):
    """A VRT with names relative to its own folder. (gdal.BuildVRT would open every piece.)"""
    vrt = gdal.GetDriverByName('VRT').Create('', image.RasterXSize, image.RasterYSize, len(BANDS), gdal.GDT_Float32)
    vrt.SetGeoTransform(image.GetGeoTransform())
    vrt.SetSpatialRef(image.GetSpatialRef())
    for number, name in enumerate(BANDS, start=1):
        vrt.GetRasterBand(number).SetDescription(name)
        vrt.GetRasterBand(number).SetNoDataValue(NODATA)
    bands = vrt.GetMetadata('xml:VRT')[0].split('</VRTRasterBand>')
    for number in range(1, len(bands)):
        bands[number - 1] += ''.join(
            f'<SimpleSource><SourceFilename relativeToVRT="1">{piece_name(window)}</SourceFilename>'
            f'<SourceBand>{number}</SourceBand><SourceProperties RasterXSize="{window[2]}" RasterYSize="{window[3]}" '
            f'DataType="Float32" BlockXSize="{cog_s3.TILE}" BlockYSize="{cog_s3.TILE}"/>'
            f'<SrcRect xOff="0" yOff="0" xSize="{window[2]}" ySize="{window[3]}"/>'
            '<DstRect xOff="{}" yOff="{}" xSize="{}" ySize="{}"/></SimpleSource>'.format(*window)
            for window in windows)
    return '</VRTRasterBand>'.join(bands)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('input', nargs='+', type=s3_path, help='a raster that GDAL reads, as s3://... or /vsis3/...')
    parser.add_argument('output', type=s3_path, help='the folder for the result, as s3://BUCKET/FOLDER')
    parser.add_argument('--workers', type=int, default=4, help='jobs on AWS Batch (default: 4)')
    parser.add_argument('--blocksize', type=int, default=4096, help='pixels on each side, n * 512 (default: 4096)')
    parser.add_argument('--red', type=int, default=3, help='band number of red (default: 3)')
    parser.add_argument('--nir', type=int, default=4, help='of near infrared (default: 4)')
    parser.add_argument('--resume', action='store_true', help='keep the pieces that are there already')
    parser.add_argument('--cog', action='store_true', help='join the pieces into one file as well')
    parser.add_argument('--serial', action='store_true', help='in this process, without AWS Batch')
    args = parser.parse_args()
    if args.blocksize < 1 or args.blocksize % cog_s3.TILE:
        parser.error(f'argument --blocksize: {args.blocksize} is not a multiple of {cog_s3.TILE}')
    return args


def s3_path(text):
    return re.sub('^s3://', '/vsis3/', text).rstrip('/')


if __name__ == '__main__':
    main()
