"""Looks at an image before it is read: whether its overviews, alpha, tiles and edges show what they should."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from affine import Affine
from rasterio.windows import Window
from scipy import ndimage

from ocmlflow.errors import InputError
from ocmlflow.scenes import collars, gdal_messages, geobox, overview_check, partial_read, raster, resample, stretching
from ocmlflow.scenes.collars import Collar
from ocmlflow.scenes.gdal_messages import METADATA_ERRORS
from ocmlflow.scenes.geobox import GeoBox
from ocmlflow.scenes.no_imagery import BlankArea
from ocmlflow.scenes.raster import SceneImage

ALPHA_WINDOWS, ALPHA_PX = 3, 128
"""Windows along each side of the image in which its alpha is looked at, and their side in pixels."""
DOUBTFUL_SHARE = 0.2
"""An alpha band is doubted where a larger share of it is neither transparent nor opaque."""
COLLAR_PX = 512
"""Largest side of the view of a scene in which collars are looked for."""
FLAT_WINDOWS, FLAT_PX, FLAT_SHARE = 5, 64, 0.9
"""Windows of the full resolution in which a collar is looked at, their side, and the share that has its colour."""


def inspect(image: SceneImage, own: GeoBox, targets: Sequence[GeoBox], *, collar_m2: float) -> SceneImage:
    """The same image with rules that hold what its pixels tell of how it has to be read; `notes` says what was odd.

    `targets` are the grids that it will be read on, and `collar_m2` the area from which a collar is no imagery; 0 keeps
    collars. Raises InputError where no tile of the image was ever written. Parts that cannot be read are left to those
    who need them.
    """
    image = _without_unwritten(image)
    image = _with_alpha_range(image)
    pixels = _pixel_grid(image, own)
    coarse = _coarse_grid(pixels, COLLAR_PX)
    levels = {resample.overview_level(image, own, target) for target in targets if resample.is_aligned(own, target)}
    levels |= {resample.overview_level(image, pixels, coarse)} if collar_m2 else set()
    image = _with_overviews_checked(image, sorted(level for level in levels if level is not None))
    return _without_collars(image, own, pixels, coarse, collar_m2) if collar_m2 else image


def _noted(image: SceneImage, note: str, **changes: Any) -> SceneImage:
    """The image with changed rules and one more note."""
    return replace(image, rules=replace(image.rules, notes=(*image.rules.notes, note), **changes))


def _pixel_grid(image: SceneImage, own: GeoBox) -> GeoBox:
    """The image's own grid in units of its pixels."""
    return GeoBox(own.crs, Affine.identity(), image.height, image.width)


def _coarse_grid(pixels: GeoBox, side: int) -> GeoBox:
    """The same ground in pixels of a whole number of pixels, at most `side` along the longer side."""
    factor = -(-max(pixels.height, pixels.width) // side)
    return GeoBox(pixels.crs, Affine.scale(factor), -(-pixels.height // factor), -(-pixels.width // factor))


def _without_unwritten(image: SceneImage) -> SceneImage:
    """Tiles that were never written, of which a TIFF has neither place nor size, are no imagery in any band."""
    dataset, bands = image.dataset, image.rules.bands
    if dataset.driver != "GTiff":
        return image
    planes = [1] if dataset.interleaving is None or dataset.interleaving.value == "PIXEL" else [*bands.colours]
    missing = ~np.logical_and.reduce([overview_check.written_blocks(dataset, plane) for plane in planes])
    count = int(missing.sum())
    if not count:
        return image
    if count == missing.size:
        raise InputError(f"image {image.name} has no pixels: none of its {count} tiles was ever written")
    area = BlankArea(dataset.block_shapes[0], missing)
    note = f"{count} of its {missing.size} tiles were never written and count as no imagery; is the file complete?"
    return _noted(image, note, blank=(*image.rules.blank, area))


def _with_alpha_range(image: SceneImage) -> SceneImage:
    """Alpha, or a mask, that nowhere is above 1 is imagery where it is 1; one that looks like a picture is doubted."""
    bands = image.rules.bands
    if bands.alpha is None and not image.rules.has_mask:
        return image
    values = np.concatenate([[0], *(part.ravel() for part in _alpha_samples(image))])
    largest = float(np.nanmax(values)) or _largest_alpha(image)
    what = "alpha band" if bands.alpha else "mask"
    if largest == 0:
        note = f"its {what} is 0 everywhere, so that nothing of it counts as imagery"
        advice = f"; if that is wrong: gdal_translate -b {' -b '.join(map(str, bands.colours))} -mask none IN OUT"
        return _noted(image, note + advice)
    if largest == 1 and image.rules.opaque != 1:
        return _noted(image, f"its {what} is nowhere above 1, which is taken for opaque", opaque=1)
    if largest <= 255 < image.rules.opaque:
        return _noted(image, f"its {what} is nowhere above 255, which is taken for opaque", opaque=255)
    shares = values[1:] / image.rules.opaque
    doubtful = float(((shares > 0.125) & (shares < 0.875)).mean())
    if bands.alpha is None or doubtful <= DOUBTFUL_SHARE:
        return image
    return _noted(
        image,
        f"{doubtful:.0%} of its alpha band is neither transparent nor opaque; values up to half count as no imagery. "
        f"If it is another band, such as infrared: gdal_edit.py -colorinterp_{bands.alpha} undefined FILE",
    )


def _alpha_samples(image: SceneImage) -> Iterator[np.ndarray]:
    """Values of the alpha band, or of the mask, in windows spread over the image."""
    number = image.rules.bands.alpha
    for window in stretching.sample_windows(image.height, image.width, count=ALPHA_WINDOWS, side=ALPHA_PX):
        try:
            read = image.dataset.read(number, window=window) if number else image.dataset.dataset_mask(window=window)
        except METADATA_ERRORS:  # reported when the window is read for use
            gdal_messages.forget_error(image.dataset)
        else:
            yield read


def _largest_alpha(image: SceneImage) -> float:
    """Largest value of the alpha band, or of the mask, in a coarse view of the whole image."""
    number = image.rules.bands.alpha
    shape = (min(image.height, COLLAR_PX), min(image.width, COLLAR_PX))
    try:
        read = image.dataset.read(number, out_shape=shape) if number else image.dataset.dataset_mask(out_shape=shape)
    except METADATA_ERRORS:
        gdal_messages.forget_error(image.dataset)
        return 255
    return float(np.nanmax(read))


def _with_overviews_checked(image: SceneImage, levels: Sequence[int]) -> SceneImage:
    """Overviews are used only if each that is needed shows what the full resolution shows."""
    if all(overview_check.is_alike(image, level) for level in levels):
        return image
    return _noted(
        image,
        "its overviews do not show what it shows, so its full resolution is read, which takes longer. Build them anew: "
        "gdaladdo -clean FILE, then gdaladdo -r average FILE",
        use_overviews=False,
    )


def _without_collars(image: SceneImage, own: GeoBox, pixels: GeoBox, coarse: GeoBox, collar_m2: float) -> SceneImage:
    """Large areas of one colour at the edge are no imagery, though the file does not declare them."""
    factor = int(coarse.transform.a)
    with resample.window_reader(image, pixels, coarse) as read:
        view, _ = partial_read.read_pixels(read, Window(0, 0, coarse.width, coarse.height))
    pixel_m2 = (geobox.gsd(own) * factor) ** 2
    for collar in collars.find(view.image, view.valid, pixel_m2=pixel_m2, collar_m2=collar_m2):
        if collar.name not in ("black", "white") and not _is_flat(image, collar, factor):
            continue  # coarse pixels of a lawn are alike too
        # Its edge runs through pixels of the coarse view that show both.
        cells = ndimage.binary_dilation(collar.pixels, np.ones((3, 3)))
        area = BlankArea((factor, factor), cells, collar.low, collar.high)
        square_metres = np.count_nonzero(collar.pixels) * pixel_m2
        note = f"{square_metres:,.0f} m2 of {collar.name} around the imagery count as no imagery (collar_m2="
        note += f"{collar_m2:g}; 0 keeps them)"
        image = _noted(image, note, blank=(*image.rules.blank, area))
    return image


def _is_flat(image: SceneImage, collar: Collar, factor: int) -> bool:
    """Whether the pixels of a collar have its colour in full resolution too, by windows spread over it."""
    inside = np.argwhere(np.asarray(ndimage.binary_erosion(collar.pixels, np.ones((3, 3)))))
    inside = inside if len(inside) else np.argwhere(collar.pixels)
    places = inside[np.linspace(0, len(inside) - 1, FLAT_WINDOWS).astype(int)]
    low, high = np.array(collar.low), np.array(collar.high)
    side = min(FLAT_PX, factor)
    shares = []
    for row, col in (places * factor).tolist():
        window = Window(col, row, side, side).intersection(Window(0, 0, image.width, image.height))
        try:
            pixels = raster.read(image, window)
        except InputError:
            continue
        has_colour = np.asarray(((pixels.image >= low) & (pixels.image <= high)).all(axis=-1))
        shares.append(has_colour[pixels.valid].mean() if pixels.valid.any() else 1.0)
    return bool(np.mean(shares) >= FLAT_SHARE) if shares else False
