"""
One Cloud Optimized GeoTIFF on S3 made of many, its pieces, without their pixels passing through this computer.

The tiles of the pieces and of their overviews are the tiles of the whole, so the file is

    a new header | the whole made small, for higher overviews | piece | piece | ...

and S3 puts it together from what it has (UploadPartCopy). Of each piece only some kilobytes travel. `write` makes
the pieces, as they must be for that; `join` joins them.
"""

import concurrent.futures
import struct

import boto3
import numpy as np
from osgeo import gdal

import rios_awsbatch

TILE = 512
OPTIONS = ['COMPRESS=DEFLATE', 'PREDICTOR=YES', f'BLOCKSIZE={TILE}', 'OVERVIEW_RESAMPLING=AVERAGE', 'BIGTIFF=YES']
# S3 takes 10,000 parts of 5 MiB to 5 GiB each; the last may be smaller. (S3 User Guide, "Multipart upload limits")
LEAST_BYTES, MOST_PIECES = 5 << 20, 9999
# Pieces that are looked at, or copied, at a time.
THREADS = 16
# Tags of TIFF; the types that values have here, as numpy has them.
SUBFILE, WIDTH, LENGTH, OFFSETS, COUNTS, METADATA, GEO = 254, 256, 257, 324, 325, 42112, range(33550, 34738)
TYPES = {2: 'S1', 3: '<u2', 4: '<u4', 12: '<f8', 16: '<u8'}
LONG8 = 16


def overviews(columns, rows, blocksize):
    """How many a piece has: a block is halved as long as that gives whole tiles."""
    depth = next(n for n in range(32) if (blocksize >> n) % (2 * TILE))
    return min(depth, max(columns, rows).bit_length() - 1)


def write(path, dataset, blocksize):
    """Write a piece; it appears whole or not at all."""
    temporary = '/vsimem/' + path.rpartition('/')[2]
    count = overviews(dataset.RasterXSize, dataset.RasterYSize, blocksize)
    gdal.GetDriverByName('COG').CreateCopy(temporary, dataset, options=[*OPTIONS, f'OVERVIEW_COUNT={count}'])
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
    """Write a whole file. (On S3 GDAL can write from start to end only, which a GeoTIFF is not.)"""
    file = gdal.VSIFOpenL(path, 'wb')
    written = gdal.VSIFWriteL(data, 1, len(data), file) if file else 0
    if not file or gdal.VSIFCloseL(file) or written < len(data):
        raise RuntimeError(f'{path} cannot be written: {gdal.GetLastErrorMsg()}')


def join(path, pieces, blocksize, vrt):
    """
    Make the file `path` of pieces that `write` has made. `pieces` is a list of (path, window), with the windows
    that blocks.windows() gives for `blocksize`, a multiple of TILE; `vrt` is a VRT of all. All is under /vsis3/.
    """
    whole = gdal.Open(vrt)
    columns, rows = whole.RasterXSize, whole.RasterYSize
    depth = overviews(columns, rows, blocksize)
    temporary = '/vsimem/small.tif'
    gdal.Translate(temporary, whole, format='COG', creationOptions=OPTIONS, resampleAlg='average',
                   width=max(1, columns >> depth + 1), height=max(1, rows >> depth + 1)).FlushCache()
    small, small_levels = read(temporary), directories(temporary)
    gdal.Unlink(temporary)
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        piece_levels = list(pool.map(directories, [piece for piece, _ in pieces]))
    sizes = [gdal.VSIStatL(piece).size for piece, _ in pieces]

    # The first piece has all the tags of the whole but for its size, its tiles, and what it says of itself.
    levels = [dict(tags) for tags in piece_levels[0][:depth + 1] + small_levels]
    levels[0][METADATA] = levels[depth + 1].pop(METADATA)
    levels[depth + 1] = {tag: field for tag, field in levels[depth + 1].items() if tag not in GEO}
    levels[depth + 1][SUBFILE] = LONG8, np.array([1])
    for level in range(depth + 1):
        levels[level][WIDTH], levels[level][LENGTH] = [
            (LONG8, np.array([side >> level])) for side in (columns, rows)]
    grids = [np.zeros((2, *grid_shape(tags)), np.int64) for tags in levels]
    for grid, tags in zip(grids[depth + 1:], small_levels):
        place(grid, tags, 0, 0, -len(small))
    start = 0
    for (_, (left, top, *_)), size, tags in zip(pieces, sizes, piece_levels):
        for level in range(min(depth + 1, len(tags))):
            place(grids[level], tags[level], (left >> level) // TILE, (top >> level) // TILE, start)
        start += size
    front = max(LEAST_BYTES, len(header(levels, grids, 0)) + len(small))
    head = header(levels, grids, front).ljust(front - len(small), b'\0') + small
    upload(path, head, [piece for piece, _ in pieces], sizes)


def grid_shape(tags):
    """Rows and columns of tiles."""
    return [-(-int(tags[tag][1][0]) // TILE) for tag in (LENGTH, WIDTH)]


def place(grid, tags, column, row, start):
    """Note the tiles of a piece: how far they are from the start of the first piece, and how many bytes they have."""
    rows, columns = grid_shape(tags)
    there = grid[:, row:row + rows, column:column + columns]
    for kept, tag, shift in zip(there, (OFFSETS, COUNTS), (start, 0)):
        kept[:] = (tags[tag][1].astype(np.int64) + shift).reshape(rows, columns)[:kept.shape[0], :kept.shape[1]]


def directories(path):
    """The levels of a BigTIFF: its image and its overviews, each a dict of tag to (type, values)."""
    file = gdal.VSIFOpenL(path, 'rb')

    def get(at, size):
        gdal.VSIFSeekL(file, at, 0)
        return bytes(gdal.VSIFReadL(1, size, file))

    levels, at = [], get(8, 8)
    while any(at):
        at, = struct.unpack('<Q', at)
        number, = struct.unpack('<Q', get(at, 8))
        tags = {}
        for tag, kind, count, data in struct.iter_unpack('<HHQ8s', get(at + 8, 20 * number)):
            size = count * np.dtype(TYPES[kind]).itemsize
            data = data[:size] if size <= 8 else get(*struct.unpack('<Q', data), size)
            tags[tag] = kind, np.frombuffer(data, TYPES[kind])
        levels.append(tags)
        at = get(at + 8 + 20 * number, 8)
    gdal.VSIFCloseL(file)
    return levels


def header(levels, grids, front):
    """What is in front of the tiles, the first piece being `front` bytes from the start of the file."""
    result = struct.pack('<2sHHHQ', b'II', 43, 8, 0, 16)
    for number, (tags, (offsets, counts)) in enumerate(zip(levels, grids), start=1):
        tags = {**tags, OFFSETS: (LONG8, np.where(counts, offsets + front, 0)), COUNTS: (LONG8, counts)}
        fields, rest = b'', b''
        rest_at = len(result) + 8 + 20 * len(tags) + 8
        for tag, (kind, data) in sorted(tags.items()):
            data = data.astype(TYPES[kind])
            raw = data.tobytes()
            where = raw.ljust(8, b'\0') if len(raw) <= 8 else struct.pack('<Q', rest_at + len(rest))
            rest += b'' if len(raw) <= 8 else raw + bytes(-len(raw) % 8)
            fields += struct.pack('<HHQ8s', tag, kind, data.size, where)
        following = rest_at + len(rest) if number < len(levels) else 0
        result += struct.pack('<Q', len(tags)) + fields + struct.pack('<Q', following) + rest
    return result


def upload(path, head, pieces, sizes):
    """The multipart upload of `head` and the pieces: S3 copies them, but small ones have to pass through here."""
    s3 = boto3.client('s3', rios_awsbatch.REGION)
    parts = [[]]
    for piece, size in zip(pieces, sizes):
        parts[-1].append((piece, size))
        if sum(size for _, size in parts[-1]) >= LEAST_BYTES:
            parts.append([])
    target = dict(zip(('Bucket', 'Key'), path[len('/vsis3/'):].split('/', 1)))
    target['UploadId'] = s3.create_multipart_upload(**target, ContentType='image/tiff')['UploadId']

    def send(number, part):
        if len(part) == 1 and part[0][1] >= LEAST_BYTES:
            answer = s3.upload_part_copy(**target, PartNumber=number, CopySource=part[0][0][len('/vsis3/'):])
            return {'PartNumber': number, 'ETag': answer['CopyPartResult']['ETag']}
        data = part if isinstance(part, bytes) else b''.join(read(piece) for piece, _ in part)
        return {'PartNumber': number, 'ETag': s3.upload_part(**target, PartNumber=number, Body=data)['ETag']}

    try:
        with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
            sent = list(pool.map(send, range(1, MOST_PIECES + 2), [head, *filter(None, parts)]))
        s3.complete_multipart_upload(**target, MultipartUpload={'Parts': sent})
    except BaseException:
        s3.abort_multipart_upload(**target)
        raise
