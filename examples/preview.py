#!/usr/bin/env python3
"""
A picture of what went in and what came out, drawn with GDAL alone: the image in false colour (near
infrared, red and green shown as red, green and blue: vegetation is red), its NDVI (vegetation is green), its
texture (what is bright is rough).

    preview.py landsat7_olinda.tif texture.tif texture.png
"""

import argparse

import numpy as np
from osgeo import gdal

gdal.UseExceptions()

# Each of the three panels is about this large, in pixels; the space between them is white.
PANEL = 700
GAP = 12
# Value and colour: brown where nothing grows, over pale yellow, to dark green; water is blue.
NDVI_COLOURS = (
    (-0.6, 0x08306b), (-0.35, 0x4a90c2), (-0.3, 0xa6703c), (-0.05, 0xdcb27c), (0.1, 0xf7efc6),
    (0.25, 0xa6cf6a), (0.4, 0x3f9a3b), (0.6, 0x0b4d1c))
# From smooth to rough; stretched between the band's own 2nd and 98th percentile.
TEXTURE_COLOURS = (
    (0.0, 0x0b0724), (0.25, 0x56106e), (0.5, 0xbb3754), (0.75, 0xf98c0a), (1.0, 0xfcffa4))
# Where there is no data.
BLANK = 0xd8d8d8


def write(image_path, bands, texture_path, png_path):
    """`bands` are the numbers of the image's near infrared, red and green."""
    image = gdal.Open(image_path)
    result = gdal.Open(texture_path)
    # NDVI, then contrast and entropy for each window: the entropy in the middle one.
    windows = (result.RasterCount - 1) // 2
    entropy = 3 + windows // 2 * 2
    panels = [
        false_colour([read(image, min(band, image.RasterCount)) for band in bands]),
        colours(read(result, 1), NDVI_COLOURS),
        colours(stretch(read(result, entropy)), TEXTURE_COLOURS)]
    gap = np.full((3, panels[0].shape[1], GAP), 255, np.uint8)
    picture = np.concatenate([panels[0], gap, panels[1], gap, panels[2]], axis=2)

    memory = gdal.GetDriverByName('MEM').Create('', picture.shape[2], picture.shape[1], 3, gdal.GDT_Byte)
    memory.WriteArray(picture)
    gdal.Translate(png_path, memory, format='PNG', creationOptions=['ZLEVEL=9'])


def read(dataset, number):
    """One band at the size of a panel, as float with NaN for "no data"."""
    scale = PANEL / max(dataset.RasterXSize, dataset.RasterYSize)
    # Whole pixels where the image is the smaller one.
    scale = min(scale, 1) if scale < 1.5 else round(scale)
    band = dataset.GetRasterBand(number)
    pixels = band.ReadAsArray(
        buf_xsize=max(1, round(dataset.RasterXSize * scale)),
        buf_ysize=max(1, round(dataset.RasterYSize * scale)),
        resample_alg=gdal.GRIORA_Average if scale < 1 else gdal.GRIORA_NearestNeighbour).astype(float)
    if band.GetNoDataValue() is not None:
        pixels[pixels == band.GetNoDataValue()] = np.nan
    return pixels


def stretch(pixels):
    """The 2nd to the 98th percentile becomes 0 to 1."""
    if np.isnan(pixels).all():
        return pixels
    low, high = np.nanpercentile(pixels, [2, 98])
    return np.clip((pixels - low) / max(high - low, 1e-6), 0, 1)


def false_colour(bands):
    picture = np.stack([stretch(band) for band in bands]) * 255
    blank = np.isnan(picture).any(axis=0)
    picture = np.nan_to_num(picture).astype(np.uint8)
    picture[:, blank] = np.array(red_green_blue(BLANK), np.uint8)[:, None]
    return picture


def colours(pixels, ramp):
    """The colour of each value, between the ramp's colours."""
    values = [value for value, _ in ramp]
    channels = zip(*(red_green_blue(colour) for _, colour in ramp))
    picture = np.stack([np.interp(pixels, values, channel) for channel in channels])
    blank = np.isnan(pixels)
    picture = np.nan_to_num(picture).astype(np.uint8)
    picture[:, blank] = np.array(red_green_blue(BLANK), np.uint8)[:, None]
    return picture


def red_green_blue(colour):
    return colour >> 16, colour >> 8 & 255, colour & 255


if __name__ == '__main__':
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('image')
    parser.add_argument('texture', help='what texture_gdal.py or texture_rios.py made of it')
    parser.add_argument('png')
    parser.add_argument(
        '--bands', type=int, nargs=3, default=(4, 3, 2), metavar=('NIR', 'RED', 'GREEN'),
        help='band numbers in the image (default: 4 3 2)')
    args = parser.parse_args()
    write(args.image, args.bands, args.texture, args.png)
