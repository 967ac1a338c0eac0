"""Opens scenes (paths, https, s3) with rasterio, and reads windows of them as RGB pixels with their validity."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np
from rasterio.enums import Resampling
from rasterio.io import DatasetReader
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window

from ocmlflow import redaction
from ocmlflow.errors import InputError
from ocmlflow.scenes import (
    block_damage,
    gdal_messages,
    gdal_settings,
    geobox,
    georeference,
    image_file,
    no_imagery,
    reading_rules,
    sidecars,
    stretching,
)
from ocmlflow.scenes.gdal_messages import GDAL_ERRORS, METADATA_ERRORS
from ocmlflow.scenes.geobox import GeoBox
from ocmlflow.scenes.reading_rules import ReadingRules
from ocmlflow.scenes.stretching import Stretch

OPAQUE = 127
"""Alpha above this is imagery: the challenge compresses alpha as JPEG, which leaves 1..127 along its edges."""
CACHE = 384 << 20
"""Bytes of GDAL's block cache in each process; GDAL's default is 5 % of the machine's memory."""


@dataclass(frozen=True)
class Pixels:
    """A window of a scene."""

    image: np.ndarray
    """(height, width, 3) uint8 RGB; black where not valid, whatever the file holds there."""
    valid: np.ndarray
    """(height, width) bool, True where the scene has imagery."""


@dataclass(frozen=True)
class SceneImage:
    """An open image, or one of its overviews, with the rules that it is read by."""

    dataset: DatasetReader
    rules: ReadingRules
    scale: tuple[float, float] = (1.0, 1.0)
    """Rows and columns of the image's full resolution in a pixel of this one."""
    level: int | None = None
    """Number of the overview; None for the full resolution."""
    source: "WarpSource | None" = None
    """Where the pixels of a warped image come from; None for one that is read as it is."""
    damaged: block_damage.Blocks = field(default_factory=dict)
    """The blocks that GDAL decodes with a warning, as far as they are known."""

    @property
    def height(self) -> int:
        """Pixels."""
        return int(self.dataset.height)

    @property
    def width(self) -> int:
        """Pixels."""
        return int(self.dataset.width)

    @property
    def name(self) -> str:
        """Path or address, without secrets."""
        return redaction.redact(self.dataset.name)


@dataclass(frozen=True)
class WarpSource:
    """The image that a warped image is made of."""

    image: SceneImage
    window: Callable[[Window], Window]
    """Gives the window of the image that a window of the warped one is made of."""


@contextmanager
def open_scene(
    href: str,
    *,
    gsd: float | None = None,
    cache: int = CACHE,
    band_names: Sequence[str] = (),
    stretch: Stretch | None = None,
    rules: ReadingRules | None = None,
) -> Iterator[tuple[SceneImage, GeoBox]]:
    """The image at `href` (path, https, s3) and its own grid.

    An image without a georeference needs `gsd`, its metres per pixel; it gets a grid of that resolution at a made-up
    place. `cache` limits GDAL's block cache in bytes; the first call in a process decides. `band_names` are those that
    its STAC item gives to its bands. An image of other values than 8 bits needs a `stretch`. With `rules`, which an
    earlier call found, neither is looked at.

    Raises InputError where the image cannot be opened or read as RGB, or has neither a georeference nor a `gsd`.
    """
    try:
        beside = rules.has_sidecars if rules else sidecars.are_beside(href)
    except OSError as error:
        raise InputError(f"cannot open image {href}: {error}") from error
    with gdal_settings.environment(href, cache=cache, sidecars=beside):
        # Without its overviews, GDAL does not read from them where a reduced size is asked for.
        options = {} if rules is None or rules.use_overviews else {"OVERVIEW_LEVEL": "NONE"}
        with image_file.open_image(href, **options) as dataset:
            try:
                own = georeference.own_grid(dataset, href, gsd)
                rules = rules or reading_rules.find(dataset, href, band_names, stretch, has_sidecars=beside)
            except InputError:
                raise
            except METADATA_ERRORS as error:
                raise InputError(f"cannot read image {href}: {gdal_messages.error_text(error)}") from error
            yield SceneImage(dataset, rules), own


def acquired(image: SceneImage) -> datetime | None:
    """Time of the image by the DateTime tag of TIFF 6.0, read as UTC since it has no zone; None where there is none."""
    try:
        text = image.dataset.tags().get("TIFFTAG_DATETIME", "")
        return datetime.strptime(text, "%Y:%m:%d %H:%M:%S").replace(tzinfo=UTC)
    except METADATA_ERRORS:
        return None


def read(image: SceneImage, window: Window) -> Pixels:
    """Pixels of a window inside the image; InputError where they cannot be read."""
    colours, alpha = read_bands(image, window)
    return to_pixels(colours, alpha)


def read_bands(image: SceneImage, window: Window) -> tuple[np.ndarray, np.ndarray]:
    """RGB (3, height, width) and alpha (height, width), both uint8, of a window inside the image.

    Alpha decides over a nodata value, and so does a mask band; where there are both, each may say that a pixel is no
    imagery. Raises InputError where the window cannot be read, or was decoded with a warning.
    """
    rules = image.rules
    if rules.blank and no_imagery.is_blank(rules.blank, window, image.scale):
        shape = (int(window.height), int(window.width))
        return np.zeros((3, *shape), np.uint8), np.zeros(shape, np.uint8)
    with _checked_read(image, window):
        colours, alpha = _read_declared(image, window)
    if colours.dtype != np.uint8:
        if colours.dtype.kind == "f":
            alpha = np.where(np.isfinite(colours).all(axis=0), alpha, 0).astype(np.uint8)
        colours = stretching.to_bytes(colours, *(rules.stretch or (0, 255)))
    if rules.blank:
        blank = no_imagery.pixels_of(rules.blank, colours, window, image.scale)
        alpha = alpha if blank is None else np.where(blank, np.uint8(0), alpha)
    return colours, alpha


def read_valid(image: SceneImage, window: Window) -> np.ndarray:
    """Validity of a window inside the image, (height, width) bool; InputError where it cannot be read."""
    rules = image.rules
    if rules.blank or rules.stretch or (rules.has_mask and rules.bands.alpha):
        return read_bands(image, window)[1] > OPAQUE
    with _checked_read(image, window):
        if rules.bands.alpha:
            alpha = image.dataset.read(rules.bands.alpha, window=window)
        elif rules.has_mask or rules.has_nodata:
            alpha = image.dataset.dataset_mask(window=window)
        else:
            alpha = np.full((int(window.height), int(window.width)), 255, np.uint8)
        return _to_alpha(alpha, rules.opaque) > OPAQUE


def read_reduced(image: SceneImage, shape: tuple[int, int]) -> np.ndarray:
    """The whole image as (height, width, 3) uint8 RGB of this shape; InputError where it cannot be read."""
    whole = Window(0, 0, image.width, image.height)
    with _checked_read(image, whole):
        colours = image.dataset.read(list(image.rules.bands.colours), out_shape=(3, *shape))
    return np.moveaxis(stretching.to_bytes(colours, *(image.rules.stretch or (0, 255))), 0, -1)


def to_pixels(colours: np.ndarray, alpha: np.ndarray) -> Pixels:
    """Pixels of RGB (3, height, width) and alpha (height, width), both uint8."""
    valid = alpha > OPAQUE
    if not valid.all():
        colours = colours * valid.view(np.uint8)  # a view: numpy would convert bools one by one
    image = np.empty((*valid.shape, 3), np.uint8)
    for band in range(3):  # band by band: numpy's own transposed copy takes five times as long
        image[..., band] = colours[band]
    return Pixels(image, valid)


def read_padded(image: SceneImage, window: Window) -> Pixels:
    """Pixels of a window that may reach beyond the image; not valid there."""
    inside = Window(0, 0, image.width, image.height).intersection(window)
    pixels = read(image, inside)
    top, left = int(inside.row_off - window.row_off), int(inside.col_off - window.col_off)
    rows = (top, int(window.height - inside.height) - top)
    cols = (left, int(window.width - inside.width) - left)
    # Padded here, since GDAL's boundless reads take four to five times as long.
    return Pixels(np.pad(pixels.image, (rows, cols, (0, 0))), np.pad(pixels.valid, (rows, cols)))


@contextmanager
def open_overview(image: SceneImage, level: int) -> Iterator[SceneImage]:
    """Open overview number `level` of the image; InputError where it cannot be opened."""
    with image_file.open_image(image.dataset.name, overview_level=level) as dataset:
        # The pixels of an overview cover the image evenly, whatever its nominal factor.
        scale = image.height / dataset.height, image.width / dataset.width
        yield SceneImage(dataset, image.rules, scale, level)


def warp(dataset: DatasetReader, own: GeoBox, target: GeoBox, alpha: int | None = None, **options: object) -> WarpedVRT:
    """A dataset on the target grid, warped as it is read; pixels are averaged where the target's are larger.

    `alpha` is the number of its alpha band; where it is None, one is added after the dataset's bands. `options` are
    others of rasterio's WarpedVRT.
    """
    # GDAL would guess the scale from the bounds of its blocks: a rotated image would seem to shrink, and be blurred.
    across, down = geobox.scale_factors(own, target)
    return WarpedVRT(
        dataset,
        src_crs=own.crs,
        src_transform=own.transform,
        crs=target.crs,
        transform=target.transform,
        height=target.height,
        width=target.width,
        resampling=Resampling.bilinear,
        # Turns nodata values, mask bands and the edges of the dataset into alpha, so that one rule says what is valid.
        add_alpha=alpha is None,
        tolerance=0.01,  # in pixels; the default of an eighth shifts pixels as the window changes
        XSCALE=across,
        YSCALE=down,
        **options,
    )


@contextmanager
def _checked_read(image: SceneImage, window: Window) -> Iterator[None]:
    """Raise InputError where a read of the window fails, or gives what GDAL warns of: such as grey for broken JPEG."""
    source = image.source.image if image.source else image
    try:
        with gdal_messages.collect_warnings() as messages:
            yield
    except GDAL_ERRORS as error:
        gdal_messages.forget_error(image.dataset)
        raise image_file.read_error(source.name, window, gdal_messages.error_text(error)) from error
    if not (messages or source.damaged):
        return
    needed = image.source.window(window) if image.source else window
    if messages:
        numbers = [number for number in (*source.rules.bands.colours, source.rules.bands.alpha) if number]
        source.damaged.update(block_damage.find(source.dataset, needed, numbers, source.level))
    if reason := block_damage.message(source.dataset, needed, source.damaged):
        raise image_file.read_error(source.name, window, f"its data are damaged: {reason}")


def _read_declared(image: SceneImage, window: Window) -> tuple[np.ndarray, np.ndarray]:
    """Colours (3, height, width) in the file's own type, and alpha (height, width) uint8, as the file declares them."""
    dataset, rules = image.dataset, image.rules
    if rules.bands.alpha is None:
        colours = dataset.read(list(rules.bands.colours), window=window)
        if not (rules.has_mask or rules.has_nodata):
            return colours, np.full(colours.shape[1:], 255, np.uint8)
        return colours, _to_alpha(dataset.dataset_mask(window=window), rules.opaque)
    # One call, so that a warped dataset is warped once.
    found = dataset.read([*rules.bands.colours, rules.bands.alpha], window=window)
    alpha = _to_alpha(found[3], rules.opaque)
    if rules.has_mask:
        alpha = np.where(dataset.read_masks(1, window=window) > 0, alpha, np.uint8(0))
    return found[:3], alpha


def _to_alpha(values: np.ndarray, opaque: float) -> np.ndarray:
    """Alpha, or a mask, whose imagery has the value `opaque`, as uint8 of 0 to 255."""
    if values.dtype == np.uint8 and opaque == 255:
        return values
    return stretching.to_bytes(values.astype(np.float32), 0, opaque)
