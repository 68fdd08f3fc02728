"""
One Cloud Optimized GeoTIFF on S3 made of its pieces, while their pixels stay where they are.

The tiles of the pieces and of their overviews are the tiles of the whole. So the file is

    a new header | the whole, made small, for higher overviews | piece | piece | ...

and S3 puts it together from what it has (UploadPartCopy). Of each piece only some kilobytes travel.
"""

import concurrent.futures
import struct

import boto3
import numpy as np
from osgeo import gdal

import pieces_s3
import rios_awsbatch
from pieces_s3 import TILE

# S3 takes 10,000 parts of 5 MiB to 5 GiB; the last may be smaller (S3 User Guide, "Multipart upload limits").
LEAST_BYTES, MOST_PIECES = 5 << 20, 9999
# Pieces that are looked at, or copied, at a time.
THREADS = 16
# Tags of TIFF; the types that values have here, as numpy has them.
SUBFILE, WIDTH, LENGTH, OFFSETS, COUNTS, METADATA = 254, 256, 257, 324, 325, 42112
GEO = {*range(33550, 34738), 50844}
TYPES = {2: 'S1', 3: '<u2', 4: '<u4', 12: '<f8', 16: '<u8'}
LONG8 = 16


def join(path, pieces, windows, blocksize, vrt):
    """
    Make the file `path`. `pieces` are files that pieces_s3.write() has made, `windows` their places, as of
    blocks.windows() with `blocksize`, a multiple of TILE; `vrt` shows them all. Everything is under /vsis3/.
    """
    whole = gdal.Open(vrt)
    sides = whole.RasterYSize, whole.RasterXSize
    depth = pieces_s3.overviews(*sides, blocksize)
    height, width = (max(1, side >> depth + 1) for side in sides)
    gdal.Translate('/vsimem/small.tif', whole, format='COG', creationOptions=pieces_s3.options(whole),
                   resampleAlg='average', width=width, height=height).FlushCache()
    small, small_levels = pieces_s3.read('/vsimem/small.tif'), directories('/vsimem/small.tif')
    gdal.Unlink('/vsimem/small.tif')
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        piece_levels = list(pool.map(directories, pieces))
    sizes = [gdal.VSIStatL(piece).size for piece in pieces]

    # The first piece has all the tags of the whole but for its size, its tiles, and what it says of itself.
    levels = [dict(tags) for tags in piece_levels[0] + small_levels]
    levels[0][METADATA] = levels[depth + 1].pop(METADATA)
    levels[depth + 1] = {tag: field for tag, field in levels[depth + 1].items() if tag not in GEO}
    levels[depth + 1][SUBFILE] = LONG8, np.array([1])
    for level, tags in enumerate(levels[:depth + 1]):
        tags[LENGTH], tags[WIDTH] = [(LONG8, np.array([side >> level])) for side in sides]
    grids = [np.zeros((2, *tiles(tags)), np.int64) for tags in levels]
    for grid, tags in zip(grids[depth + 1:], small_levels):
        place(grid, 0, 0, tags, -len(small))
    start = 0
    for (left, top, _, _), size, piece in zip(windows, sizes, piece_levels):
        for level, tags in enumerate(piece):
            place(grids[level], (top >> level) // TILE, (left >> level) // TILE, tags, start)
        start += size
    front = max(LEAST_BYTES, len(header(levels, grids, 0)) + len(small))
    upload(path, header(levels, grids, front).ljust(front - len(small), b'\0') + small, pieces, sizes)


def tiles(tags):
    """Rows and columns of tiles in a level."""
    return [-(-int(tags[tag][1][0]) // TILE) for tag in (LENGTH, WIDTH)]


def place(grid, row, column, tags, start):
    """Note where a piece has its tiles, from the start of the first piece, and how many bytes they are."""
    shape = tiles(tags)
    there = grid[:, row:row + shape[0], column:column + shape[1]]
    for part, tag, shift in zip(there, (OFFSETS, COUNTS), (start, 0)):
        part[:] = (tags[tag][1].astype(np.int64) + shift).reshape(shape)[:part.shape[0], :part.shape[1]]


def directories(path):
    """The levels of a BigTIFF, the image and its overviews, each as a dict of tag to (type, values)."""
    file = gdal.VSIFOpenL(path, 'rb')

    def get(at, form):
        gdal.VSIFSeekL(file, at, 0)
        return struct.unpack(form, gdal.VSIFReadL(1, struct.calcsize(form), file))

    levels, (at,) = [], get(8, '<Q')
    while at:
        tags, (number,) = {}, get(at, '<Q')
        for field in range(at + 8, at + 8 + 20 * number, 20):
            tag, kind, count, where = get(field, '<HHQQ')
            size = count * np.dtype(TYPES[kind]).itemsize
            data, = get(field + 12 if size <= 8 else where, f'{size}s')
            tags[tag] = kind, np.frombuffer(data, TYPES[kind])
        levels.append(tags)
        at, = get(at + 8 + 20 * number, '<Q')
    gdal.VSIFCloseL(file)
    return levels


def header(levels, grids, front):
    """What comes before all tiles; the first piece begins `front` bytes from the start of the file."""
    result = struct.pack('<2sHHHQ', b'II', 43, 8, 0, 16)
    for number, (tags, (offsets, counts)) in enumerate(zip(levels, grids), start=1):
        tags = {**tags, OFFSETS: (LONG8, np.where(counts, offsets + front, 0)), COUNTS: (LONG8, counts)}
        rest_at, fields, rest = len(result) + 8 + 20 * len(tags) + 8, b'', b''
        for tag, (kind, data) in sorted(tags.items()):
            raw = data.astype(TYPES[kind]).tobytes()
            where = raw if len(raw) <= 8 else struct.pack('<Q', rest_at + len(rest))
            rest += b'' if len(raw) <= 8 else raw + bytes(-len(raw) % 8)
            fields += struct.pack('<HHQ8s', tag, kind, data.size, where)
        next_at = rest_at + len(rest) if number < len(levels) else 0
        result += struct.pack('<Q', len(tags)) + fields + struct.pack('<Q', next_at) + rest
    return result


def upload(path, head, pieces, sizes):
    """Put `head` and the pieces together. S3 copies pieces by itself; only small ones travel."""
    s3 = boto3.client('s3', rios_awsbatch.REGION)
    bucket, _, key = path[len('/vsis3/'):].partition('/')
    target = {'Bucket': bucket, 'Key': key}
    target['UploadId'] = s3.create_multipart_upload(**target)['UploadId']

    def send(number, part):
        if isinstance(part, list) and len(part) == 1:
            source = part[0][len('/vsis3/'):]
            answer = s3.upload_part_copy(**target, PartNumber=number, CopySource=source)['CopyPartResult']
        else:
            data = part if isinstance(part, bytes) else b''.join(pieces_s3.read(piece) for piece in part)
            answer = s3.upload_part(**target, PartNumber=number, Body=data)
        return {'PartNumber': number, 'ETag': answer['ETag']}

    parts, missing = [head], 0
    for piece, size in zip(pieces, sizes):
        if missing > 0:
            parts[-1].append(piece)
        else:
            parts.append([piece])
            missing = LEAST_BYTES
        missing -= size
    try:
        with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
            sent = list(pool.map(send, range(1, len(parts) + 1), parts))
        s3.complete_multipart_upload(**target, MultipartUpload={'Parts': sent})
    except BaseException:
        s3.abort_multipart_upload(**target)
        raise
