"""Ground area of the pixels of a raster in degrees."""
import affine                                  # from apt
import numpy as np
from geographiclib.geodesic import Geodesic    # from pip


def areas(transform, row, rows, columns):
    """Square metres of each pixel of some rows: an array (rows, columns)."""
    to_world = affine.Affine.from_gdal(*transform)
    answer = np.empty((rows, columns))
    for line in range(rows):
        polygon = Geodesic.WGS84.Polygon()
        for column, down in ((0, 0), (0, 1), (1, 1), (1, 0)):
            longitude, latitude = to_world * (column, row + line + down)
            polygon.AddPoint(latitude, longitude)
        answer[line] = abs(polygon.Compute()[2])
    return answer
