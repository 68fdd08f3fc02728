#!/usr/bin/env python3
"""
Makes examples/data/landcover.onnx, the network of examples/segment_gpu.py. Needs: pip install onnx

The network has two layers of convolutions, 3 x 3 pixels each, whose weights are random and stay so, and a
last layer that is fitted to them by least squares. It learns the three classes that a rule of thumb finds in
the example scene, smoothed over 5 x 5 pixels: enough to show the way that any ONNX network goes, and no more.
"""
import pathlib

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from osgeo import gdal

DATA = pathlib.Path(__file__).resolve().parent.parent.parent / 'examples' / 'data'
FEATURES = 16


def neighbours(pixels, size):
    """Shape (bands, rows, columns) -> (bands, rows - size + 1, columns - size + 1, size, size)."""
    return np.lib.stride_tricks.sliding_window_view(pixels, (size, size), axis=(1, 2))


def convolved(pixels, weights, bias):
    """What a layer gives; it is 2 pixels less high and wide."""
    values = np.einsum('byxij,fbij->fyx', neighbours(pixels, 3), weights, optimize=True)
    return np.maximum(values + bias[:, None, None], 0)


def rule(pixels):
    """0 water, 1 plants, 2 town and soil, by the digital numbers of red, near and short-wave infrared."""
    red, nir, swir = pixels[2], pixels[3], pixels[4]
    return np.where(swir < 40, 0, np.where(nir > 1.05 * red, 1, 2))


def smoothed(classes):
    """The most frequent class in 5 x 5 pixels around each."""
    votes = np.stack([neighbours((classes == number)[None], 5).sum(axis=(3, 4))[0] for number in range(3)])
    return votes.argmax(axis=0)


def main():
    pixels = gdal.Open(str(DATA / 'landsat7_olinda.tif')).ReadAsArray().astype(np.float32)
    random = np.random.default_rng(2)
    layers, values = [], pixels
    for number in range(2):
        weights = random.normal(size=(FEATURES, len(values), 3, 3))
        weights /= np.sqrt(weights[0].size) * values.std(axis=(1, 2))[None, :, None, None]
        bias = 0.3 * random.normal(size=FEATURES) - (weights.sum(axis=(2, 3)) @ values.mean(axis=(1, 2)))
        layers.append((weights.astype(np.float32), bias.astype(np.float32)))
        values = convolved(values, *layers[-1])
    wanted = smoothed(rule(pixels))
    known = np.append(values.reshape(FEATURES, -1), np.ones((1, wanted.size)), axis=0)
    fit = np.linalg.lstsq(known.T, np.eye(3)[wanted.ravel()], rcond=None)[0]
    layers.append((fit[:-1].T[:, :, None, None].astype(np.float32), fit[-1].astype(np.float32)))
    agree = (known.T @ fit).argmax(axis=1) == wanted.ravel()
    print(f'{agree.mean():.1%} of the pixels are as the rule says')

    nodes, last = [helper.make_node('Cast', ['pixels'], ['0'], to=TensorProto.FLOAT)], '0'
    for number, _ in enumerate(layers, start=1):
        nodes.append(helper.make_node('Conv', [last, f'w{number}', f'b{number}'], [f'c{number}']))
        last = f'c{number}'
        if number < len(layers):
            nodes.append(helper.make_node('Relu', [last], [str(number)]))
            last = str(number)
    nodes += [helper.make_node('ArgMax', [last], ['class'], axis=1, keepdims=0),
              helper.make_node('Cast', ['class'], ['classes'], to=TensorProto.UINT8)]
    graph = helper.make_graph(
        nodes, 'landcover',
        [helper.make_tensor_value_info('pixels', TensorProto.UINT8, [1, 6, 'rows + 4', 'columns + 4'])],
        [helper.make_tensor_value_info('classes', TensorProto.UINT8, [1, 'rows', 'columns'])],
        [numpy_helper.from_array(array, f'{name}{number}')
         for number, layer in enumerate(layers, start=1) for name, array in zip('wb', layer)])
    # Versions that onnxruntime has known for years.
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid('', 13)])
    onnx.checker.check_model(model)
    onnx.save(model, str(DATA / 'landcover.onnx'))


if __name__ == '__main__':
    main()
