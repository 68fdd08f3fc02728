"""The mean of the 5 x 5 pixels around each pixel, computed on AWS Batch: smallest_gdal.py INPUT OUTPUT"""

import sys

import numpy as np
from osgeo import gdal

import blocks
import rios_awsbatch

gdal.UseExceptions()


def focal_mean(pixels):
    """Your own function: gets a block with a margin, shape (bands, rows, columns), returns it without."""
    return np.lib.stride_tricks.sliding_window_view(pixels, (5, 5), axis=(1, 2)).mean(axis=(3, 4))


if __name__ == '__main__':
    raster = gdal.Open(sys.argv[1])
    windows = blocks.windows(raster, 256)
    with blocks.create(sys.argv[2], raster, bands=raster.RasterCount) as output, \
            rios_awsbatch.AWSBatchExecutor(max_workers=4) as executor:
        pixels = (blocks.read(raster, window, margin=2) for window in windows)
        blocks.write(output, windows, executor.map(focal_mean, pixels, buffersize=16))
