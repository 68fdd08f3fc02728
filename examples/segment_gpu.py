#!/usr/bin/env python3
"""
Water, plants, town: a trained network says what each pixel of a satellite image is, on a GPU if there is one.

    scripts/create.sh --gpus 1 --wait                               # or scripts/modify.sh --gpus 1 --wait
    PIP_PACKAGES='onnxruntime-gpu[cuda,cudnn]' scripts/build.sh
    .venv/bin/pip install onnxruntime                               # for --serial
    .venv/bin/python examples/segment_gpu.py examples/data/landsat7_olinda.tif cover.tif

Without a GPU it computes on the CPU, and says so: PIP_PACKAGES=onnxruntime is then enough. The network is
data/landcover.onnx, 13 kB that scripts/dev/network.py has made for this scene of six bands. One of your own
goes the same way if its file is ONNX; for torch, load() and segment() have other lines.
"""

import argparse
import pathlib

import numpy as np
from osgeo import gdal

import blocks
import rios_awsbatch

gdal.UseExceptions()

NETWORK = pathlib.Path(__file__).resolve().parent / 'data' / 'landcover.onnx'
# Pixels on each side of a block of which the network makes none: two convolutions of 3 x 3.
MARGIN = 2
NAMES = 'water', 'plants', 'town and soil'

network = None      # of a worker, in its process


def load(data):
    """Each worker calls this once, before its first block."""
    global network
    import onnxruntime
    there = onnxruntime.get_available_providers()
    if 'CUDAExecutionProvider' in there:
        onnxruntime.preload_dlls()          # CUDA's libraries, which pip has put beside it
    # Where the first has no GPU, onnxruntime takes the second.
    wanted = [name for name in ('CUDAExecutionProvider', 'CPUExecutionProvider') if name in there]
    network = onnxruntime.InferenceSession(data, providers=wanted)
    print('segment_gpu.py: the network is loaded, for the', device())


def device():
    return 'GPU' if network.get_providers()[0] == 'CUDAExecutionProvider' else 'CPU'


def segment(pixels):
    """The classes of a block (bands, rows, columns; uint8), without its margin; and the device."""
    return network.run(None, {'pixels': pixels[np.newaxis]})[0][0], device()


def classes(results, devices):
    """The classes of each result; the device is added to a set."""
    for pixels, name in results:
        devices.add(name)
        yield pixels


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('input', help='a raster with the six bands of data/landsat7_olinda.tif, as 8 bits')
    parser.add_argument('output', help='the GeoTIFF to write: 0 water, 1 plants, 2 town and soil')
    parser.add_argument('--workers', type=int, default=4, help='jobs on AWS Batch (default: 4)')
    parser.add_argument('--blocksize', type=int, default=64, help='pixels on each side (default: 64)')
    parser.add_argument('--serial', action='store_true', help='in this process, without AWS')
    args = parser.parse_args()

    raster, data, devices = gdal.Open(args.input), NETWORK.read_bytes(), set()
    windows = blocks.windows(raster, args.blocksize)
    pixels = (blocks.read(raster, window, MARGIN) for window in windows)
    with blocks.create(args.output, raster, dtype='uint8', size=args.blocksize) as output:
        if args.serial:
            load(data)
            blocks.write(output, windows, classes(map(segment, pixels), devices))
        else:
            with rios_awsbatch.AWSBatchExecutor(
                    args.workers, initializer=load, initargs=(data,)) as executor:
                results = executor.map(segment, pixels, buffersize=4 * args.workers)
                blocks.write(output, windows, classes(results, devices))
    if 'CPU' in devices:
        print('No GPU: computed on the CPU. A GPU takes scripts/create.sh --gpus, and onnxruntime-gpu.')
    counts = np.bincount(gdal.Open(args.output).ReadAsArray().ravel(), minlength=len(NAMES))
    found = ', '.join(f'{name} {count / counts.sum():.0%}' for name, count in zip(NAMES, counts))
    print(f'{args.output}: {len(windows)} blocks on the {" and ".join(sorted(devices))}; {found}')


if __name__ == '__main__':
    main()
