"""Options of prepare: which scenes are cut, into what chips, and what is held out."""

import os
from dataclasses import dataclass, field

from ocmlflow.pipeline.option_fields import (
    COLLAR_HELP,
    COLLAR_M2,
    SEED_MAX,
    STRETCH_HELP,
    WORK,
    OptionError,
    Options,
    about,
    option,
)
from ocmlflow.pipeline.option_values import bounding_box, href, several, share_or_names, stretch, work_share

VALIDATION_SHARE = "0.2"
"""Held out for validation where neither it nor folds are given."""


@dataclass(frozen=True, kw_only=True)
class PrepareOptions(Options):
    """Cut labelled scenes into chips for training, validation and test, logged as artifact `chips`."""

    catalog: str = field(
        metadata=about(
            "STAC file, or folder or glob of GeoTIFFs with label files of the same name, beside them or in labels/. A "
            "path, https or s3 address; several are separated by commas.",
            group="input",
            metavar="HREF",
            read=several,
        )
    )
    labels: str | None = option(
        None,
        "Label files for all scenes, such as one of a whole city, or folders with a file of each scene's name; several "
        "are separated by commas. Without it, the labels that lie beside the images or that the catalogue names.",
        group="input",
        metavar="HREF",
        read=several,
    )
    layer: str | None = option(
        None,
        "Layer of the buildings in label files that have several, such as GeoPackages. Without it, the only one.",
        group="input",
        metavar="NAME",
    )
    where: str | None = option(
        None,
        "SQL condition of the features that are buildings, by their properties, such as building!='no' or "
        "confidence>0.7; other features are left out. Without it, every polygon is a building.",
        group="input",
        metavar="SQL",
    )
    aoi: str | None = option(
        None,
        "GeoJSON file with the ground that was labelled; what lies outside is not valid: it counts in no loss and no "
        "score. Without it, whole scenes.",
        group="input",
        metavar="HREF",
        read=href,
    )
    mosaic: bool = option(
        False,
        "Read GeoTIFFs of one folder or glob that touch or overlap as the tiles of one picture, instead of as a scene "
        "each.",
        group="input",
    )
    scenes: str | None = option(
        None,
        "Ids of the scenes to use, separated by commas. Without it, all scenes.",
        group="input",
        metavar="IDS",
        read=several,
    )
    places: str | None = option(
        None,
        "Places to use, separated by commas. Without it, all places.",
        group="input",
        metavar="NAMES",
        read=several,
    )
    bbox: tuple[float, float, float, float] | None = option(
        None,
        "Only scenes that meet this box, in degrees. Without it, scenes anywhere.",
        group="input",
        metavar="WEST,SOUTH,EAST,NORTH",
        read=bounding_box,
    )
    gsd: float = option(0.1, "Metres per pixel of the chips.", group="output", low=0.01, high=10, metavar="METRES")
    size: int = option(
        512,
        "Side of a chip in pixels, a multiple of 32.",
        group="output",
        low=64,
        high=1024,
        multiple_of=32,
        metavar="PIXELS",
    )
    stride: int | None = option(
        None,
        "Pixels from one chip to the next; must divide size. Without it, size: chips lie side by side.",
        group="output",
        low=1,
        metavar="PIXELS",
    )
    min_valid: float = option(
        0.1,
        "Smallest share of a chip that must show imagery; others are not written.",
        group="output",
        low=0,
        high=1,
        metavar="SHARE",
    )
    empty_share: float = option(
        1.0,
        "Share of the training chips without a building that is kept.",
        group="output",
        low=0,
        high=1,
        metavar="SHARE",
    )
    buffer_m: float = option(
        0.0,
        "Metres around outlines of buildings that training ignores.",
        group="output",
        low=0,
        high=10,
        metavar="METRES",
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
    validation: str | None = option(
        None,
        "Places or scenes to hold out for validation, separated by commas, or the share of all chips to hold out in "
        f"blocks of ground. Without it, {VALIDATION_SHARE}. Not together with folds.",
        group="split",
        metavar="NAMES|SHARE",
        read=share_or_names,
    )
    test: str | None = option(
        None,
        "The same for test ground, which only evaluate with split=test looks at. Without it, there is none. Not "
        "together with folds.",
        group="split",
        metavar="NAMES|SHARE",
        read=share_or_names,
    )
    folds: int | None = option(
        None,
        "Split the blocks of ground into this many equal parts for cross-validation with fold= of train, instead of "
        "validation and test. Without it, no folds.",
        group="split",
        low=2,
        high=100,
        metavar="N",
    )
    block_m: float | None = option(
        None,
        "Side in metres of the blocks of ground that are held out. Without it, 500, and in a place that is too small "
        "for it half of that, a quarter and so on, down to one chip, until training keeps half of its chips. Scores on "
        "small blocks are flattered more, as held-out ground lies nearer to training: for a figure to rely on, hold "
        "out whole places, or give block_m.",
        group="split",
        low=10,
        metavar="METRES",
    )
    seed: int = option(
        0, "Seed that draws the held-out blocks and the empty chips.", group="split", low=0, high=SEED_MAX, metavar="N"
    )
    skip_unreadable: bool = option(False, "Leave out scenes that cannot be read, and list them.", group="input")
    dry_run: bool = option(False, "Only print what would be done.", group="output")
    share: tuple[int, int] | None = option(
        None,
        "Cut only part I of N, I from 0, into a work folder that all parts see; afterwards a run without share, over "
        "the same folder, makes the chips. Without it, this run does everything.",
        group="machine",
        metavar="I/N",
        read=work_share,
    )
    workers: int = option(
        os.cpu_count() or 1, "Processes on this machine, usually one per core.", group="machine", low=1, metavar="N"
    )
    scheduler: str | None = option(
        None,
        "Address of a Dask cluster that works instead, such as tcp://HOST:8786. Without it, this machine works.",
        group="machine",
        metavar="ADDRESS",
    )
    work: str = option(
        WORK,
        "Folder for unfinished chips; an interrupted run continues from it.",
        group="machine",
        metavar="FOLDER",
        read=href,
    )

    @property
    def effective_stride(self) -> int:
        """Pixels from one chip to the next: `stride`, or `size` where none is given."""
        return self.stride or self.size

    @property
    def effective_validation(self) -> str | None:
        """What is held out for validation: a share where nothing is said, None with folds."""
        return VALIDATION_SHARE if self.validation is None and not self.folds else self.validation

    def check(self) -> None:
        """Folds replace validation and test; the stride must divide the size."""
        for name in ("validation", "test"):
            if self.folds and getattr(self, name) is not None:
                raise OptionError("folds", f"each fold is held out in turn, leave out {name}; got folds={self.folds}")
        if self.size % self.effective_stride:
            raise OptionError(
                "stride",
                f"must divide the size of {self.size}, because held-out ground is scored on chips side by side; got "
                f"{self.stride}, and {self.size // 2} would do",
            )
