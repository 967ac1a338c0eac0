import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from conftest import CRS, building, room_for
from geopandas.testing import assert_geodataframe_equal
from pyogrio.errors import DataSourceError

from ocmlflow.prediction import vector_files


def frame(first: int, count: int) -> gpd.GeoDataFrame:
    """Footprints of one row, each with a courtyard."""
    outlines = [
        building(0, 100 * i, 50, 100 * i + 60) - building(10, 100 * i + 10, 20, 100 * i + 20)
        for i in range(first, first + count)
    ]
    columns = {"scene": pd.Series(["é"] * count, dtype="str"), "area_m2": np.arange(first, first + count, dtype=float)}
    return gpd.GeoDataFrame(columns, geometry=gpd.GeoSeries(outlines, crs=CRS))


@pytest.mark.parametrize("counts", [(3, 0, 4), (0, 2), (0,)])
@pytest.mark.parametrize("suffix", [".parquet", ".fgb", ".geojson"])
def test_what_is_written_piece_by_piece_is_read_as_one(tmp_path, counts, suffix, monkeypatch):
    monkeypatch.setattr(vector_files, "BATCH", 2)
    whole = frame(0, sum(counts))
    starts = np.cumsum([0, *counts[:-1]])
    path = tmp_path / "a.parquet"
    vector_files.write((frame(int(first), count) for first, count in zip(starts, counts, strict=True)), path)
    if suffix == ".parquet":
        assert_geodataframe_equal(gpd.read_parquet(path), whole)
        return
    vector_files.convert(path, path.with_suffix(suffix))
    found = gpd.read_file(path.with_suffix(suffix))
    assert found.crs.to_epsg() == (32630 if suffix == ".fgb" else 4326)
    assert len(found) == len(whole)
    if len(whole):
        found = found.sort_values("area_m2").to_crs(CRS)  # FlatGeobuf orders by place
        assert found.scene.tolist() == whole.scene.tolist()
        assert shapely.hausdorff_distance(found.geometry.to_numpy(), whole.geometry.to_numpy()).max() < 0.02
        assert (shapely.get_num_interior_rings(found.geometry.to_numpy()) == 1).all()


@pytest.mark.parametrize("suffix", [".fgb", ".geojson"])
@pytest.mark.parametrize("lost", [2, 5, 1_000])
def test_footprints_without_room_are_an_error_and_never_half_a_file(tmp_path, suffix, lost):
    path = tmp_path / "a.parquet"
    copy = path.with_suffix(suffix)
    vector_files.write([frame(0, 300)], path)
    vector_files.convert(path, copy)
    size = copy.stat().st_size
    copy.unlink()
    with room_for(size - lost), pytest.raises((OSError, DataSourceError)):
        vector_files.convert(path, copy)
