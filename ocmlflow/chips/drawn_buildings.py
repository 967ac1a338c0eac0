"""The footprints that people drew, kept beside the index of a chip set: what buildings are scored against.

`footprints.parquet` is GeoParquet in degrees (lon, lat), a row per footprint: `scene`, `number` (from 0 in each scene,
in the order of its label files), `area_m2` and `geometry`. They are those that the labels were drawn from: repaired,
and each building that was drawn twice counted once. Some may lie where chips are not valid, or off the imagery.
"""

import io
from collections.abc import Iterable
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely

from ocmlflow.chips import chip_set, zarr_store
from ocmlflow.chips.chip_set import ChipSet
from ocmlflow.chips.scene_survey import SceneSurvey

NAME = "footprints.parquet"
"""Name of the file in a chip set."""


def write(folder: Path, surveys: Iterable[SceneSurvey]) -> None:
    """Write the footprints of the scenes to a chip set's folder."""
    frames = [
        gpd.GeoDataFrame(
            {
                "scene": np.full(len(survey.footprints.polygons), survey.scene.id, object),
                "number": np.arange(len(survey.footprints.polygons)),
                "area_m2": shapely.area(survey.footprints.polygons).round(2),
            },
            geometry=survey.footprints.polygons,
            crs=survey.grid.crs,
        ).to_crs("EPSG:4326")
        for survey in surveys
    ]
    pd.concat(frames, ignore_index=True).to_parquet(folder / NAME)


def read(chips: ChipSet, scenes: Iterable[str]) -> gpd.GeoDataFrame | None:
    """The footprints of some scenes, in degrees, with the columns of the file; None in a chip set of earlier versions.

    Raises InputError where the file is not the one that `prepare` wrote, by the list of files, or cannot be read.
    """
    hashes = chip_set.listed_hashes(chips.folder)
    if hashes is not None and NAME not in hashes:
        return None
    try:
        content = chip_set.read_checked(chips.folder, NAME, hashes)
    except FileNotFoundError as error:
        if hashes is None:
            return None
        raise zarr_store.damaged(chips.folder, NAME, "there is no such file") from error
    try:
        return gpd.read_parquet(io.BytesIO(content), filters=[("scene", "in", sorted(set(scenes)))])
    except Exception as error:  # pyarrow and geopandas raise of many types
        raise zarr_store.damaged(chips.folder, NAME, f"it cannot be read ({error})") from error
