"""The main script of scripts/dev/test-image.sh: work that needs both extra packages, in ground.py."""
import os
import sys
import time

import numpy as np
from osgeo import gdal

import rios_awsbatch

gdal.UseExceptions()
TRANSFORM, SIZE, ROWS = (150.0, 0.01, 0.0, -27.0, 0.0, -0.01), 96, 8


def block(row):
    import ground                              # in the worker image, where build.sh has put it
    pixels = ground.areas(TRANSFORM, row, ROWS, SIZE)
    return pixels, os.getuid(), os.environ['AWS_BATCH_JOB_ID'], sys.executable


def main():
    import ground
    raster = gdal.GetDriverByName('GTiff').Create(sys.argv[1], SIZE, SIZE, 1, gdal.GDT_Float64)
    raster.SetGeoTransform(TRANSFORM)
    workers, began, first = set(), time.monotonic(), None
    with rios_awsbatch.AWSBatchExecutor(max_workers=2) as executor:
        rows = range(0, SIZE, ROWS)
        for row, (pixels, user, worker, python) in zip(rows, executor.map(block, rows)):
            first = first or time.monotonic() - began
            assert user != 0, 'a worker ran as root'
            assert python == sys.executable, 'a worker has ' + python
            raster.GetRasterBand(1).WriteArray(pixels, 0, row)
            workers.add(worker)
    raster = None
    written = gdal.Open(sys.argv[1]).ReadAsArray()
    assert np.array_equal(written, ground.areas(TRANSFORM, 0, SIZE, SIZE)), 'pixels differ from a serial run'
    assert 1.0e6 < written.mean() < 1.2e6, written.mean()
    print(f'{len(rows)} blocks by {len(workers)} workers with {sys.executable} {sys.version.split()[0]}, '
          f'GDAL {gdal.__version__}, numpy {np.__version__}: same pixels as without them, the first after '
          f'{first:.1f} s; {sys.argv[2]}')
    sys.exit(3)


main()
