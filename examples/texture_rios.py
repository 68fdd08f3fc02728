#!/usr/bin/env python3
"""
Texture of a satellite image, computed on AWS Batch, as a RIOS script.

The same work as in texture_gdal.py, written for RIOS (rioshome.org), which reads and writes the blocks.
It runs unchanged on RIOS 1.4, 2.0 and later; only `useAWSBatch` knows which it is.

    texture_rios.py landsat7_olinda.tif texture.tif --workers 4
    texture_rios.py s3://mybucket/landsat7_olinda.tif s3://mybucket/texture.tif
"""

import argparse
import re

import cloudpickle
import numpy as np
from osgeo import gdal
from rios import applier, cuiprogress

import rios_awsbatch  # noqa: F401 (makes AWS Batch known to RIOS)
import texture

gdal.UseExceptions()
# An output on S3 is a file in the temporary folder (CPL_TMPDIR, TMPDIR or /tmp) until it is closed.
gdal.SetConfigOption('CPL_VSIL_USE_TEMP_FILE_FOR_RANDOM_WRITE', 'YES')
# Workers have numpy, GDAL and RIOS, but not our own texture.py: send it along with the function.
cloudpickle.register_pickle_by_value(texture)


def main():
    args = parseArguments()
    infiles = applier.FilenameAssociations()
    outfiles = applier.FilenameAssociations()
    infiles.image = args.input
    outfiles.texture = args.output

    dataset = gdal.Open(args.input)
    otherArgs = applier.OtherInputs()
    otherArgs.red = args.red - 1
    otherArgs.nir = args.nir - 1
    otherArgs.nodata = dataset.GetRasterBand(args.red).GetNoDataValue()
    otherArgs.radii = args.radius

    controls = applier.ApplierControls()
    controls.setWindowXsize(args.blocksize)
    controls.setWindowYsize(args.blocksize)
    controls.setOverlap(max(args.radius))
    controls.setOutputDriverName('GTiff')
    # Tiles of the size of a block: RIOS wants that of a GeoTIFF, so that no tile is written twice.
    controls.setCreationOptions([
        'TILED=YES', f'BLOCKXSIZE={args.blocksize}', f'BLOCKYSIZE={args.blocksize}',
        'COMPRESS=DEFLATE', 'INTERLEAVE=BAND'])
    controls.setStatsIgnore(texture.NODATA)
    controls.setLayerNames(texture.band_names(args.radius))
    controls.setProgress(cuiprogress.CUIProgressBar())
    if not args.serial:
        useAWSBatch(controls, args.workers)

    applier.apply(userFunction, infiles, outfiles, otherArgs, controls=controls)


def useAWSBatch(controls, workers):
    """Have the blocks computed by `workers` at a time, in the words of the RIOS that is installed."""
    if hasattr(applier, 'ConcurrencyStyle'):
        controls.setConcurrencyStyle(applier.ConcurrencyStyle(
            computeWorkerKind='CW_AWSBATCH', numComputeWorkers=workers))
    else:
        controls.setNumThreads(workers)
        controls.setJobManagerType('AWSBatch')


def userFunction(info, inputs, outputs, otherArgs):
    """What RIOS calls for each block; on AWS Batch, in a worker."""
    red = inputs.image[otherArgs.red]
    nir = inputs.image[otherArgs.nir]
    result = texture.texture_block(red, nir, otherArgs.nodata, otherArgs.radii)
    # RIOS cuts the margin off again, so the result needs one.
    margin = max(otherArgs.radii)
    outputs.texture = np.pad(
        result, [(0, 0), (margin, margin), (margin, margin)], constant_values=texture.NODATA)


def parseArguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        'input', type=path, help='a raster that GDAL reads, with a red and a near infrared band')
    parser.add_argument('output', type=path, help='the GeoTIFF to write')
    parser.add_argument('--workers', type=int, default=4, help='jobs on AWS Batch (default: 4)')
    parser.add_argument(
        '--blocksize', type=int, default=256,
        help='pixels on each side of a block, a power of 2 (default: 256)')
    parser.add_argument(
        '--radius', type=int, nargs='+', default=texture.RADII,
        help='a window of 2 * RADIUS + 1 pixels on each side, several for several windows (default: '
             f'{" ".join(str(radius) for radius in texture.RADII)})')
    parser.add_argument('--red', type=int, default=3, help='band number of red (default: 3)')
    parser.add_argument('--nir', type=int, default=4, help='of near infrared (default: 4)')
    parser.add_argument('--serial', action='store_true', help='in this process, without AWS')
    return parser.parse_args()


def path(text):
    """A file's name as GDAL has it, of one on S3 too."""
    return re.sub('^s3://', '/vsis3/', text)


if __name__ == '__main__':
    main()
