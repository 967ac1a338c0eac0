"""Options of the commands that use a trained model: evaluate, compare and predict."""

from dataclasses import dataclass, field
from typing import Literal

from ocmlflow.pipeline.option_fields import (
    COLLAR_HELP,
    COLLAR_M2,
    MODEL_NAME,
    STRETCH_HELP,
    WORK,
    OptionError,
    Options,
    about,
    option,
)
from ocmlflow.pipeline.option_values import href, names, several, stretch, work_share

BLOCK_M = 100.0
MIN_AREA_M2 = 2.0
"""Evaluate and compare score buildings of the size that predict writes."""
MIN_HOLE_M2 = 1.0
"""Evaluate and compare fill the holes that predict fills."""
_BLOCK = "Side in metres of the blocks of ground that confidence intervals draw as a whole."
_AREA = "Smallest area of a building in square metres, the same as in predict; smaller ones are left out."


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(Options):
    """Score a model on held-out chips, choose its threshold, and promote it if it is the best."""

    model: str = option(
        f"models:/{MODEL_NAME}@candidate",
        "The model: models:/NAME@ALIAS or models:/NAME/VERSION.",
        group="model",
        metavar="MODEL",
    )
    chips: str | None = option(
        None,
        "Run id of a `prepare` run. Without it, the chips that the model was trained on.",
        group="input",
        metavar="RUN",
        read=href,
    )
    predictions: str | None = option(
        None,
        "Folder of masks from another tool, SCENE.tif or CHIP_ID.tif, or of its polygons, SCENE.parquet, .geojson, "
        ".gpkg or .fgb (or one such file for all), to score instead of a model, on chips or else the newest ones. "
        "Without it, the model is scored.",
        group="input",
        metavar="FOLDER",
        read=href,
    )
    split: Literal["validation", "test"] = option(
        "validation",
        "Chips to score on. test takes the threshold and temperature that the version has, and promotes nothing.",
        group="input",
    )
    promote: bool = option(True, "Make the model @champion when it beats the present one.", group="model")
    promotion: Literal["iou", "buildings"] = option(
        "iou",
        "Score by which a model must beat @champion: pooled IoU of pixels, or F1 of buildings. Both are always shown.",
        group="model",
    )
    margin: float = option(
        0.0,
        "Score of promotion by which a model must beat @champion to replace it.",
        group="model",
        low=0,
        high=1,
        metavar="SCORE",
    )
    max_loss: float = option(
        0.02,
        "IoU that a place of the champion's own validation ground may lose at most; a model that loses more does not "
        "replace it.",
        group="model",
        low=0,
        high=1,
        metavar="IOU",
    )
    bootstrap_block_m: float = option(BLOCK_M, _BLOCK, group="quality", low=1, metavar="METRES")
    min_area_m2: float = option(MIN_AREA_M2, _AREA, group="quality", low=0, metavar="M2")


@dataclass(frozen=True, kw_only=True)
class CompareOptions(Options):
    """Score models on the same validation chips, with paired confidence intervals of their differences."""

    models: str = field(
        metadata=about(
            "The models, such as models:/NAME/1, separated by commas; the others are compared with the first.",
            group="model",
            metavar="MODELS",
            read=several,
        )
    )
    predictions: str | None = option(
        None,
        "Folders of masks or polygons from other tools, separated by commas, that are compared like models. Without "
        "it, models alone.",
        group="input",
        metavar="FOLDERS",
        read=several,
    )
    chips: str | None = option(
        None,
        "Run id of a `prepare` run. Without it, the chips that the first model was trained on.",
        group="input",
        metavar="RUN",
        read=href,
    )
    bootstrap_block_m: float = option(BLOCK_M, _BLOCK, group="quality", low=1, metavar="METRES")
    min_area_m2: float = option(MIN_AREA_M2, _AREA, group="quality", low=0, metavar="M2")

    def check(self) -> None:
        """At least two, models or folders of masks, must be there to compare."""
        if len(names(self.models)) + len(names(self.predictions)) < 2:
            raise OptionError("models", f"must be two or more models, or folders of masks, got {self.models}")


@dataclass(frozen=True, kw_only=True)
class PredictOptions(Options):
    """Map the buildings of scenes with a registered model."""

    images: str = field(
        metadata=about(
            "STAC file, GeoTIFF, or folder or glob of GeoTIFFs. A path, https or s3 address; several are separated by "
            "commas.",
            group="input",
            metavar="HREF",
            read=several,
        )
    )
    mosaic: bool = option(
        False,
        "Read GeoTIFFs of one folder or glob that touch or overlap as the tiles of one picture, instead of as a scene "
        "each.",
        group="input",
    )
    output: str = field(
        metadata=about("Folder or s3:// address for the results.", group="output", metavar="FOLDER", read=href)
    )
    model: str = option(
        f"models:/{MODEL_NAME}@champion",
        "The model: models:/NAME@ALIAS or models:/NAME/VERSION. With several, separated by commas, their predictions "
        "are averaged.",
        group="model",
        metavar="MODEL",
        read=several,
    )
    threshold: float | None = option(
        None,
        "Probability from which a pixel is building. Without it, the model's own.",
        group="model",
        low=0.01,
        high=0.99,
        metavar="PROBABILITY",
    )
    aoi: str | None = option(
        None,
        "GeoJSON file with the area of interest; what lies outside is left out. Without it, whole scenes.",
        group="input",
        metavar="HREF",
        read=href,
    )
    collar_m2: float = option(
        COLLAR_M2,
        COLLAR_HELP,
        group="input",
        low=0,
        metavar="M2",
    )
    stretch: str | None = option(
        None,
        STRETCH_HELP,
        group="input",
        metavar="LOW,HIGH",
        read=stretch,
    )
    grid: Literal["own", "model"] = option(
        "own", "Pixel grid of the results: the scene's own, or the model's resolution.", group="output"
    )
    chip_gsd: float | None = option(
        None,
        "Metres per pixel of images without georeference. Without it, the model's resolution.",
        group="input",
        low=0.01,
        high=10,
        metavar="METRES",
    )
    tta: Literal["none", "flips", "d4"] = option(
        "none",
        "Test-time augmentation: average over 1 view (none), 4 (flips) or 8 (d4: flips and rotations).",
        group="quality",
    )
    engine: Literal["auto", "keras", "openvino"] = option(
        "auto",
        "What runs the network. auto takes openvino where it is installed and there is no GPU, else keras.",
        group="machine",
    )
    size: int = option(
        1184,
        "Side of a window in pixels, a multiple of 32.",
        group="quality",
        low=64,
        high=8192,
        multiple_of=32,
        metavar="PIXELS",
    )
    margin: int = option(
        160,
        "Pixels at each side of a window that only give context; their predictions are dropped.",
        group="quality",
        low=0,
        metavar="PIXELS",
    )
    batch_size: int = option(1, "Windows per batch.", group="machine", low=1, metavar="N")
    min_area_m2: float = option(
        MIN_AREA_M2,
        "Smallest area of a footprint in square metres; smaller ones are left out.",
        group="quality",
        low=0,
        metavar="M2",
    )
    min_hole_m2: float = option(
        MIN_HOLE_M2,
        "Smallest area of a hole in a footprint in square metres; smaller ones are filled. The masks do not change.",
        group="quality",
        low=0,
        metavar="M2",
    )
    separate: bool = option(
        True,
        "Give buildings that touch a footprint each; false: one for all that is connected. The masks do not change.",
        group="quality",
    )
    instances: bool = option(
        False,
        "Write a raster of footprints too: for each pixel the row in the GeoParquet file, from 1; 0 where none is.",
        group="output",
    )
    outline: Literal["squared", "simple", "exact"] = option(
        "squared",
        "Footprints with right angles where the building has them, with few corners, or along the edges of pixels. "
        "The masks do not change.",
        group="output",
    )
    skip_unreadable: bool = option(
        False, "Treat what cannot be read as no imagery, and list it, instead of failing.", group="input"
    )
    share: tuple[int, int] | None = option(
        None,
        "Predict only part I of N, I from 0, into a work folder that all parts see; afterwards a run without share, "
        "over the same folder, makes the maps. Without it, this run does everything.",
        group="machine",
        metavar="I/N",
        read=work_share,
    )
    workers: int = option(
        1,
        "Processes of this machine, which share its cores. A single one uses all cores.",
        group="machine",
        low=1,
        metavar="N",
    )
    scheduler: str | None = option(
        None,
        "Address of a Dask cluster that works instead, such as tcp://HOST:8786. Without it, this machine works.",
        group="machine",
        metavar="ADDRESS",
    )
    work: str = option(
        WORK,
        "Folder for unfinished results; an interrupted run continues from it.",
        group="machine",
        metavar="FOLDER",
        read=href,
    )

    def check(self) -> None:
        """The margins must leave at least 32 pixels of the window."""
        if 2 * self.margin > self.size - 32:
            raise OptionError(
                "margin", f"must be at most {self.size // 2 - 16} at a size of {self.size}, got {self.margin}"
            )
