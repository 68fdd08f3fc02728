"""
Pieces of a large raster, each a Cloud Optimized GeoTIFF on S3, and the VRT that shows them as one image.
"""

from osgeo import gdal

import blocks

TILE = 512
OPTIONS = [f'BLOCKSIZE={TILE}', 'COMPRESS=DEFLATE', 'RESAMPLING=AVERAGE', 'BIGTIFF=YES']


def name(window):
    """The file of the block at this window."""
    left, top = window[:2]
    return f'{top:07d}_{left:07d}.tif'


def overviews(columns, rows, blocksize):
    """How many a piece has: blocks are halved as long as that gives whole tiles."""
    depth = next(n for n in range(32) if (blocksize >> n) % (2 * TILE))
    return min(depth, max(columns, rows).bit_length() - 1)


def describe(dataset, like, names, nodata):
    """Say where on Earth a raster is (where `like` is) and what its bands hold."""
    blocks.place(dataset, like)
    for number, text in enumerate(names, start=1):
        dataset.GetRasterBand(number).SetDescription(text)
        dataset.GetRasterBand(number).SetNoDataValue(nodata)


def options(dataset):
    """How a Cloud Optimized GeoTIFF of it is made; no predictor is for complex numbers."""
    is_complex = gdal.DataTypeIsComplex(dataset.GetRasterBand(1).DataType)
    return [*OPTIONS, f'PREDICTOR={"NO" if is_complex else "YES"}']


def write(path, dataset, blocksize):
    """Write a piece; it appears whole or not at all."""
    temporary = '/vsimem/' + path.rpartition('/')[2]
    count = overviews(dataset.RasterXSize, dataset.RasterYSize, blocksize)
    gdal.GetDriverByName('COG').CreateCopy(
        temporary, dataset, options=[*options(dataset), f'OVERVIEW_COUNT={count}'])
    try:
        put(path, read(temporary))
    finally:
        gdal.Unlink(temporary)


def read(path):
    """A whole file."""
    file = gdal.VSIFOpenL(path, 'rb')
    data = gdal.VSIFReadL(1, gdal.VSIStatL(path).size, file)
    gdal.VSIFCloseL(file)
    return data


def put(path, data):
    """Write a whole file. (GDAL writes to S3 from start to end only, and no GeoTIFF is made like that.)"""
    file = gdal.VSIFOpenL(path, 'wb')
    written = gdal.VSIFWriteL(data, 1, len(data), file) if file else 0
    if not file or gdal.VSIFCloseL(file) or written < len(data):
        raise RuntimeError(f'{path} cannot be written: {gdal.GetLastErrorMsg()}')


def write_vrt(path, image, windows, names, nodata, data_type):
    """
    Write the VRT, on the grid of `image`, into the folder of the pieces and with relative names. (To use
    gdal.BuildVRT, each piece would have to be opened.)
    """
    size = image.RasterXSize, image.RasterYSize
    vrt = gdal.GetDriverByName('VRT').Create('', *size, len(names), data_type)
    describe(vrt, image, names, nodata)
    bands = vrt.GetMetadata('xml:VRT')[0].split('</VRTRasterBand>')
    for number in range(1, len(bands)):
        bands[number - 1] += ''.join(
            '<SimpleSource><SourceFilename relativeToVRT="1">{0}</SourceFilename><SourceBand>{5}</SourceBand>'
            '<SourceProperties RasterXSize="{3}" RasterYSize="{4}" DataType="{6}" BlockXSize="{7}" '
            'BlockYSize="{7}"/><SrcRect xOff="0" yOff="0" xSize="{3}" ySize="{4}"/>'
            '<DstRect xOff="{1}" yOff="{2}" xSize="{3}" ySize="{4}"/></SimpleSource>'.format(
                name(window), *window, number, gdal.GetDataTypeName(data_type), TILE) for window in windows)
    put(path, '</VRTRasterBand>'.join(bands).encode())
