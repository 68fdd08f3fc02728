"""
How green is each pixel, and how varied is the vegetation around it: the work that the two example
scripts (`texture_gdal.py` and `texture_rios.py`) do on each block of a satellite image. numpy only.

For each pixel:

NDVI
    The normalised difference vegetation index (nir - red) / (nir + red), from -1 to 1. Water is below
    0, soil and streets near 0, dense green vegetation well above.
contrast and entropy, once for each size of window
    Two of Haralick's texture measures (IEEE Trans. SMC-3, 1973, 610-621) of the NDVI. In the window
    around the pixel, all pairs of neighbours (across, down and along both diagonals) are counted by
    their two grey levels: the grey-level co-occurrence matrix. Contrast is the mean squared
    difference of the two levels: high where green meets bare ground. Entropy, in bits, grows with the
    number of different pairs: low over open water or one kind of crop, high in suburbs with trees.
    A small window sees field borders and rows of houses, a large one whole districts.
"""

import numpy as np

# The windows' sizes: pixels from the centre to the side, so 7 x 7, 13 x 13 and 25 x 25 pixels.
RADII = (3, 6, 12)
# What the output holds where the input has no data.
NODATA = -9999.0
# Grey levels for NDVI from -1 to 1. A fixed range, not the block's own: else blocks would not join.
LEVELS = 64
# A pair of levels is one 16-bit number, first * LEVELS + second; this one stands for "no data".
EMPTY = 0xFFFF
# Row and column from a pixel to the other one of a pair.
NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1))


def band_names(radii):
    """What the bands of the result hold, in their order."""
    names = ['NDVI']
    for radius in radii:
        side = 2 * radius + 1
        names += [f'NDVI contrast {side} x {side}', f'NDVI entropy {side} x {side}']
    return names


def texture_block(red, nir, nodata, radii):
    """
    NDVI and its texture for one block.

    Parameters
    ----------
    red, nir : array, shape (rows + 2 * margin, columns + 2 * margin), any real dtype
        The two bands of the block, and on each side a margin of `max(radii)` pixels which belong to
        the blocks beside it, so that the blocks join without a seam. Outside the image the margin
        holds `nodata`, or 0 where the image has no such value.
    nodata : number or None
        The input's value for "no data".
    radii : sequence of int
        A window of 2 * radius + 1 pixels on each side for each of them.

    Returns
    -------
    array, shape (1 + 2 * len(radii), rows, columns), float32
        In the order of `band_names`, NODATA where the pixel has no data.
    """
    margin = max(radii)
    index = ndvi(red, nir, nodata)
    centre = trim(index, margin)
    bands = [centre]
    for radius in radii:
        bands += glcm(trim(index, margin - radius), radius)
    result = np.stack(bands).astype(np.float32)
    result[:, np.isnan(centre)] = NODATA
    return result


def trim(pixels, margin):
    """Without `margin` pixels on each side."""
    rows, columns = pixels.shape
    return pixels[margin:rows - margin, margin:columns - margin]


def ndvi(red, nir, nodata):
    """NDVI, float64, NaN where either band is `nodata` or both are 0 (black border, no light)."""
    red = red.astype(np.float64)
    nir = nir.astype(np.float64)
    total = nir + red
    known = total != 0
    if nodata is not None and not np.isnan(nodata):
        known &= (red != nodata) & (nir != nodata)
    return np.divide(nir - red, total, out=np.full(total.shape, np.nan), where=known)


def glcm(index, radius):
    """Contrast and entropy of the co-occurrences in the window around each pixel within the margin."""
    known = ~np.isnan(index)
    levels = np.where(known, (np.nan_to_num(index) + 1) / 2 * LEVELS, 0)
    levels = np.clip(levels, 0, LEVELS - 1).astype(np.uint16)
    windows = [
        np.lib.stride_tricks.sliding_window_view(pairs, (side_y, side_x))
        for pairs, side_y, side_x in pair_codes(levels, known, 2 * radius + 1)]

    rows, columns = windows[0].shape[:2]
    contrast = np.empty((rows, columns))
    entropy = np.empty((rows, columns))
    for row in range(rows):
        codes = np.concatenate([w[row].reshape(columns, -1) for w in windows], axis=1)
        contrast[row], entropy[row] = haralick(codes)
    return contrast, entropy


def pair_codes(levels, known, side):
    """For each kind of neighbour: the code of each pair, and how many pairs fit into the window."""
    height, width = levels.shape
    for down, right in NEIGHBOURS:
        here = (slice(0, height - down), slice(max(0, -right), width - max(0, right)))
        there = (slice(down, height), slice(max(0, right), width - max(0, -right)))
        # A pair has no direction: the smaller level first.
        first = np.minimum(levels[here], levels[there])
        second = np.maximum(levels[here], levels[there])
        codes = np.where(known[here] & known[there], first * LEVELS + second, EMPTY)
        yield codes.astype(np.uint16), side - down, side - abs(right)


def haralick(codes):
    """
    Contrast and entropy of some pixels; `codes`, shape (pixels, pairs), holds the pairs of their windows.

    A co-occurrence matrix has far more cells than a window has pairs, so it is never laid out: sorted,
    equal pairs stand in one run, and the length of the run is the cell.
    """
    pixels, pairs = codes.shape
    codes = np.sort(codes, axis=1, kind='stable')
    is_start = np.ones(codes.shape, dtype=bool)
    is_start[:, 1:] = codes[:, 1:] != codes[:, :-1]
    start = np.flatnonzero(is_start)
    pixel = start // pairs
    code = codes.ravel()[start].astype(np.int64)
    count = np.diff(start, append=codes.size) * (code != EMPTY)

    difference = code // LEVELS - code % LEVELS
    total = np.bincount(pixel, count, pixels)
    squares = np.bincount(pixel, count * difference ** 2, pixels)
    bits = np.bincount(pixel, count * np.log2(np.maximum(count, 1)), pixels)
    total = np.maximum(total, 1)
    return squares / total, np.log2(total) - bits / total
