#!/usr/bin/env python3
"""
A large image or mosaic on S3, computed on AWS Batch, with GDAL alone. Workers read and write S3 themselves;
this script hands out windows and gets short answers, so a laptop will do for a terabyte.

    mosaic_s3.py s3://mybucket/scenes/a.tif s3://mybucket/scenes/b.tif s3://mybucket/ndvi --workers 50

The last word is the folder for the result; the others become one mosaic, the last one on top. A worker makes
a Cloud Optimized GeoTIFF of each block. Beside these pieces, mosaic.vrt is all of them as one image, which
QGIS opens from S3; with --cog, mosaic.tif is one file. A block that is computed twice does no harm, for an
object on S3 appears whole or not at all. --resume keeps what the same input, window, function and parameters
have made.

Copy it with blocks.py, pieces_s3.py, cog_s3.py and progress.py. For work of your own change what stands above
main(), and the parameters in parse_arguments().
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
from osgeo import gdal

import blocks
import cog_s3
import pieces_s3
import progress
import rios_awsbatch

gdal.UseExceptions()
# Workers have numpy and GDAL, but not our own modules: send them along with the function.
cloudpickle.register_pickle_by_value(blocks)
cloudpickle.register_pickle_by_value(pieces_s3)

MARGIN = 2
BANDS = ('NDVI', 'NDVI, mean of 5 x 5 pixels')
TYPE = gdal.GDT_Float32
NODATA = -9999.0


def compute(pixels, red, nir):
    """
    What is done with a block. `pixels` are all bands of the input with a margin, shape (bands,
    rows + 2 * MARGIN, columns + 2 * MARGIN). Returns float32, shape (len(BANDS), rows, columns).
    """
    red, nir = pixels[red - 1].astype(np.float32), pixels[nir - 1].astype(np.float32)
    known = red + nir > 0
    ndvi = np.divide(nir - red, nir + red, out=np.zeros_like(red), where=known)
    rows, columns = (side - 2 * MARGIN for side in ndvi.shape)
    around = [np.s_[y:y + rows, x:x + columns] for y in range(2 * MARGIN + 1) for x in range(2 * MARGIN + 1)]
    number = sum(known[part].astype(np.float32) for part in around)
    mean = sum(ndvi[part] for part in around) / np.maximum(1, number)
    centre = around[len(around) // 2]
    return np.where(known[centre], np.stack([ndvi[centre], mean]), np.float32(NODATA))


def main():
    args = parse_arguments()
    try:
        source, made_of = args.input[0], describe(args)
        if len(args.input) > 1:
            source = args.output + '/input.vrt'
            if not args.resolution:
                refuse_other_resolutions(args.input)
            gdal.BuildVRT(source, args.input, strict=True, resolution=args.resolution).FlushCache()
        image = gdal.Open(source)
        # An image whose place cannot be kept is an error now, not in the workers.
        blocks.place(gdal.GetDriverByName('MEM').Create('', 1, 1), image)
        for path in (*args.input, args.output):
            if not path.startswith('/vsi'):
                raise ValueError(f'{path} is on this computer, where workers do not see it: take a place on '
                                 'S3, s3://BUCKET/NAME')
        windows = blocks.windows(image, args.blocksize)
        pieces = [f'{args.output}/{pieces_s3.name(window)}' for window in windows]
        if args.cog and len(pieces) > cog_s3.MOST_PIECES:
            raise ValueError(f'--cog joins {cog_s3.MOST_PIECES} blocks at most: take a larger --blocksize')
        work = functools.partial(
            make_piece, source=source, parameters=args.parameters, made_of=made_of, blocksize=args.blocksize,
            resume=args.resume)
        made = 0
        with rios_awsbatch.AWSBatchExecutor(args.workers) as executor, \
                progress.Progress(len(pieces), executor.stats) as line:
            for is_new in executor.map(work, pieces, windows, buffersize=10 * args.workers):
                made += is_new
                line.step()
        vrt = args.output + '/mosaic.vrt'
        pieces_s3.write_vrt(vrt, image, windows, BANDS, NODATA, TYPE)
        print(f'{vrt}: {made} blocks computed, {len(windows) - made} kept')
        if args.cog:
            cog_s3.join(args.output + '/mosaic.tif', pieces, windows, args.blocksize, vrt)
            print(f'{args.output}/mosaic.tif: the same as one Cloud Optimized GeoTIFF')
    except (ValueError, RuntimeError, rios_awsbatch.AWSBatchException) as error:
        sys.exit(f'{os.path.basename(sys.argv[0])}: {error}')


def refuse_other_resolutions(paths):
    """GDAL would bring them together by nearest neighbour, without a word."""
    first, *rest = [gdal.Open(path).GetGeoTransform() for path in paths]
    for path, place in zip(paths[1:], rest):
        if not np.allclose(place[1::4], first[1::4], rtol=1e-6, atol=0):
            raise ValueError(
                f'{path} has pixels of {place[1]:g} x {-place[5]:g}, but {paths[0]} of {first[1]:g} x '
                f'{-first[5]:g}. Say what to take, by nearest neighbour: --resolution highest, lowest or '
                'average')


def describe(args):
    """What the pieces are made of, to be told from those of another run."""
    inputs = [(path, stat and (stat.size, stat.mtime)) for path, stat in
              ((path, gdal.VSIStatL(path)) for path in args.input)]
    return {
        'INPUT': hashlib.sha256(repr(inputs).encode()).hexdigest(),
        'FUNCTION': hashlib.sha256(inspect.getsource(compute).encode()).hexdigest(),
        'PARAMETERS': json.dumps(
            [args.parameters, MARGIN, BANDS, TYPE, NODATA, args.blocksize, args.resolution])}


def make_piece(path, window, source, parameters, made_of, blocksize, resume):
    """In a worker: compute a block and write it. True, or False where its piece was there already."""
    made_of = {**made_of, 'WINDOW': str(window)}
    if resume and gdal.VSIStatL(path) and made_of.items() <= gdal.Open(path).GetMetadata().items():
        return False
    image = gdal.Open(source)
    piece = gdal.GetDriverByName('MEM').Create('', *window[2:], len(BANDS), TYPE)
    blocks.write(piece, [(0, 0, *window[2:])], [compute(blocks.read(image, window, MARGIN), **parameters)])
    # GDAL moves what says where the image is to where the window is.
    pieces_s3.describe(piece, gdal.Translate('', image, format='VRT', srcWin=window), BANDS, NODATA)
    piece.SetMetadata(made_of)
    pieces_s3.write(path, piece, blocksize)
    return True


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('input', nargs='+', type=s3_path, help='a raster, s3://BUCKET/KEY')
    parser.add_argument('output', type=s3_path, help='the folder for the result: s3://BUCKET/FOLDER')
    parser.add_argument('--workers', type=int, default=4, help='jobs on AWS Batch (default: 4)')
    parser.add_argument('--blocksize', type=int, default=4096, help='pixels on each side (default: 4096)')
    parser.add_argument('--red', type=int, default=3, help='band number of red (default: 3)')
    parser.add_argument('--nir', type=int, default=4, help='of near infrared (default: 4)')
    parser.add_argument(
        '--resolution', choices=['highest', 'lowest', 'average'],
        help='of the mosaic, where the inputs differ; the others are resampled by nearest neighbour')
    parser.add_argument('--resume', action='store_true', help='keep the pieces that are there already')
    parser.add_argument('--cog', action='store_true', help='make one file of the pieces, too')
    args = parser.parse_args()
    if args.blocksize < 1 or args.blocksize % pieces_s3.TILE:
        parser.error(f'argument --blocksize: {args.blocksize} is not a multiple of {pieces_s3.TILE}')
    args.parameters = {'red': args.red, 'nir': args.nir}
    return args


def s3_path(text):
    return re.sub('^s3://', '/vsis3/', text).rstrip('/')


if __name__ == '__main__':
    main()
