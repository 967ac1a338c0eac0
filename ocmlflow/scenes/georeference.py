"""Where the pixels of an image lie, by its CRS and transform; what has only a part of that is refused."""

import math

from affine import Affine
from rasterio.io import DatasetReader

from ocmlflow.errors import InputError
from ocmlflow.scenes import geobox
from ocmlflow.scenes.geobox import GeoBox

FINEST_GSD = 0.01
"""Metres per pixel of the finest imagery that is taken for what its georeference says."""
MAX_GSD_RATIO = 20
"""Largest ratio of a scene's GSD to that of chips or model: 2 m for 0.1 m, where a house is a few pixels."""
_NO_TRANSFORM = (Affine.identity(), Affine.scale(1, -1))
"""Transforms of images without a georeference: GDAL's default, and the same with rows counted downwards."""
_MADE_UP_PLACE = "EPSG:32631", 500_000.0, 5_000_000.0
"""CRS, x and y given to chips without a georeference, so that they are read, warped and written like any scene."""


def is_georeferenced(dataset: DatasetReader) -> bool:
    """Whether an image has both a CRS and a transform."""
    return dataset.crs is not None and dataset.transform not in _NO_TRANSFORM


def own_grid(dataset: DatasetReader, href: str, gsd: float | None) -> GeoBox:
    """The grid of an image's pixels; one that says nothing of its place gets a made-up grid of `gsd` metres.

    Raises InputError where it names a CRS or a transform alone, has control points or RPCs in place of a transform, or
    does not lie on earth, and where it says nothing and `gsd` is None.
    """
    if is_georeferenced(dataset):
        return _real_grid(dataset, href)
    if dataset.transform not in _NO_TRANSFORM:
        raise InputError(
            f"image {href} has a transform, such as that of a .tfw file, but no CRS, so its place on earth is unknown: "
            "set the CRS that it is in, say with gdal_edit.py -a_srs EPSG:CODE"
        )
    points, points_crs = dataset.gcps
    if points:
        raise InputError(
            f"image {href} is placed by {len(points)} ground control points alone, and has no transform: bring it to a "
            f"grid, say with gdalwarp -r bilinear {'' if points_crs else '-s_srs EPSG:CODE '}-t_srs EPSG:CODE IN OUT"
        )
    if dataset.rpcs:
        raise InputError(
            f"image {href} is placed by RPCs (a model of its camera) alone, and has no transform: bring it to a grid, "
            "say with gdalwarp -rpc -to RPC_DEM=ELEVATION.tif -r bilinear -t_srs EPSG:CODE IN OUT"
        )
    if dataset.crs is not None:
        raise InputError(
            f"image {href} has a CRS but no transform, so its place on earth is unknown: its world file (.tfw) may be "
            "lost. Put it back beside the image, or set the corners, say with gdal_edit.py -a_ullr LEFT TOP RIGHT "
            "BOTTOM"
        )
    if gsd is None:
        raise InputError(f"image {href} has no georeference (CRS and transform), which is needed here")
    crs, x, y = _MADE_UP_PLACE
    place = Affine(gsd, 0, round(x / gsd) * gsd, 0, -gsd, round(y / gsd) * gsd)
    return GeoBox(crs, place, dataset.height, dataset.width)


def check_resolution(own: GeoBox, href: str, *, gsd: float, seen_by: str) -> None:
    """Raise InputError unless an image's pixels are between FINEST_GSD and MAX_GSD_RATIO times `gsd` metres.

    `seen_by` names what has that resolution: the chips or the model.
    """
    metres = geobox.gsd(own)
    if not metres >= FINEST_GSD * 0.99:  # true for NaN too
        raise InputError(
            f"image {href} has pixels of {metres:.2g} m by its georeference, finer than the {FINEST_GSD} m that drone "
            "imagery has: check that its CRS and its transform belong to each other. If it is that fine, make it "
            f"coarser, say with gdalwarp -r average -tr {gsd / 2:g} {gsd / 2:g} IN OUT"
        )
    if metres > MAX_GSD_RATIO * gsd:
        raise InputError(
            f"image {href} has pixels of {metres:.3g} m, over {MAX_GSD_RATIO} times the {gsd:g} m of {seen_by}, at "
            "which no building can be told: finer imagery would do, or a coarser resolution"
        )


def _real_grid(dataset: DatasetReader, href: str) -> GeoBox:
    transform = dataset.transform
    if not (math.isfinite(sum(transform[:6])) and abs(transform.determinant) > 0):
        raise InputError(
            f"image {href} has the transform {tuple(transform[:6])}, in which pixels have no size: set its corners, "
            "say with gdal_edit.py -a_ullr LEFT TOP RIGHT BOTTOM"
        )
    own = GeoBox(dataset.crs.to_wkt(), transform, dataset.height, dataset.width)
    try:
        geobox.check_on_earth(own)
    except InputError as error:
        raise InputError(f"image {href} has no valid place on earth: {error}") from error
    return own
