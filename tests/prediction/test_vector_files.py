import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from affine import Affine
from conftest import CRS, TRANSFORM, building, room_for
from geopandas.testing import assert_geodataframe_equal
from pyogrio.errors import DataSourceError
from rasterio.windows import Window
from scipy import ndimage

from ocmlflow.prediction import ground_outlines, polygonize, vector_files
from ocmlflow.prediction.polygonize import LabelBlock
from ocmlflow.scenes import windows
from ocmlflow.scenes.geobox import GeoBox


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
    assert found.crs.to_epsg() == 4326
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


def ragged_mask(side: int, *, spots: float = 0.03) -> np.ndarray:
    """(side, side) bool: ragged objects a pixel or two apart, with spots of background in them."""
    random = np.random.default_rng(3)
    smooth = ndimage.gaussian_filter(random.random((side, side)), 4) + 0.05 * random.random((side, side))
    return (smooth > np.median(smooth)) & (random.random((side, side)) > spots)


def written(building: np.ndarray, path, *, size: int = 128, crs: str = CRS, **options) -> gpd.GeoDataFrame:
    """Footprints of a mask, traced in blocks of a size, written in all formats and read from GeoParquet."""
    blocks = (
        polygonize.mask_block(window, np.full((window.height, window.width), 80, np.uint8), building[window.toslices()])
        for window in windows.blocks(*building.shape, size=size)
    )
    transform = TRANSFORM if crs == CRS else Affine(1e-6, 0, 3.0, 0, -1e-6, 0.5)
    options = {"outline": "simple", "min_area_m2": 0, "min_hole_m2": 1, **options}
    grid = GeoBox(crs, transform, *building.shape)
    vector_files.write(vector_files.frames(polygonize.trace(blocks), grid, scene="one", **options), path)
    for suffix in vector_files.DRIVERS:
        path.with_suffix(suffix).unlink(missing_ok=True)
        vector_files.convert(path, path.with_suffix(suffix))
    return gpd.read_parquet(path)


def overlap_m2(frame: gpd.GeoDataFrame) -> float:
    outlines = frame.geometry.to_numpy()
    one, other = shapely.STRtree(outlines).query(outlines, predicate="intersects")
    pairs = one < other
    return float(shapely.area(outlines[one[pairs]] & outlines[other[pairs]]).sum())


@pytest.mark.parametrize("crs", [CRS, "EPSG:4326"])
@pytest.mark.parametrize("outline", ground_outlines.OUTLINES)
@pytest.mark.parametrize("spots", [0, 0.03])
def test_all_formats_hold_the_same_valid_polygons_that_do_not_overlap(tmp_path, crs, outline, spots, monkeypatch):
    monkeypatch.setattr(vector_files, "BATCH", 40)
    path = tmp_path / "a.parquet"
    frame = written(ragged_mask(200, spots=spots), path, crs=crs, outline=outline)
    assert len(frame) > 20
    assert frame.columns.tolist() == vector_files.COLUMNS
    assert set(frame.building) == {"yes"}
    copies = [gpd.read_file(path.with_suffix(suffix)) for suffix in vector_files.DRIVERS]
    for found in (frame, *copies):
        assert (found.geom_type == "Polygon").all()
        assert found.is_valid.all()
        assert found.id.is_unique
        assert overlap_m2(found) == 0
        assert found.count_coordinates().max() < 2000
    for copy in copies:
        assert copy.columns.tolist() == vector_files.COLUMNS
        same = copy.set_index("id").loc[frame.id]
        assert same.area_m2.tolist() == frame.area_m2.tolist()
        back = same.to_crs(frame.crs).geometry.to_numpy()
        step = 0.02 if crs == CRS else 2e-7
        assert shapely.hausdorff_distance(back, frame.geometry.to_numpy()).max() < step
        holes = shapely.get_num_interior_rings(back)
        assert holes.tolist() == shapely.get_num_interior_rings(frame.geometry.to_numpy()).tolist()


def test_ids_name_the_first_pixel_and_depend_on_no_block(tmp_path):
    building = ragged_mask(120, spots=0)
    frames = [
        written(building, tmp_path / f"{size}.parquet", size=size, min_area_m2=0.3).sort_values("id")
        for size in (32, 50, 120)
    ]
    assert len(frames[0]) > 3
    for frame in frames[1:]:
        assert frame.id.tolist() == frames[0].id.tolist()
        assert frame.area_m2.tolist() == pytest.approx(frames[0].area_m2.tolist(), rel=0.2)
    roof = np.zeros((50, 60), bool)
    roof[20:40, 30:50] = roof[10:20, 40:45] = True
    assert written(roof, tmp_path / "roof.parquet").id.tolist() == ["one-10-40"]


def test_pinholes_are_filled_and_a_courtyard_stays(tmp_path):
    roof = np.zeros((100, 120), bool)
    roof[10:90, 10:110] = True
    roof[30:60, 30:60] = False  # 9 m2
    roof[70:79, 20:30] = roof[15, 80] = False
    courtyard = 0.1 * 30 * 0.1 * 30
    (filled,) = written(roof, tmp_path / "a.parquet").geometry
    assert [shapely.Polygon(ring).area for ring in filled.interiors] == pytest.approx([courtyard])
    (whole,) = written(roof, tmp_path / "b.parquet", min_hole_m2=0, outline="exact").geometry
    assert len(whole.interiors) == 3
    (full,) = written(roof, tmp_path / "c.parquet", min_hole_m2=9.5).geometry
    assert not full.interiors


def test_an_outline_with_too_many_corners_is_split_and_said(tmp_path, caplog):
    comb = np.zeros((50, 11_000), bool)
    comb[:, np.arange(11_000) % 20 < 10] = comb[:20] = True
    frame = written(comb, tmp_path / "a.parquet")
    assert len(frame) > 1
    assert frame.id.tolist() == ["one-0-0", *(f"one-0-0-{number}" for number in range(2, len(frame) + 1))]
    assert frame.area.sum() == pytest.approx(comb.sum() * 0.01, rel=1e-3)
    assert overlap_m2(frame) == 0
    assert "scene one: 1 outlines" in caplog.text


@pytest.mark.parametrize("suffix", [".fgb", ".geojson"])
def test_an_outline_that_rounding_splits_is_one_polygon_in_every_file(tmp_path, suffix):
    """Two squares joined by a neck of a millimetre."""
    squares = [shapely.box(500_000, 620_000, 500_010, 620_010), shapely.box(500_011, 620_000, 500_019, 620_010)]
    neck = shapely.box(500_009, 620_005, 500_012, 620_005.001)
    frame = gpd.GeoDataFrame({"area_m2": [180.0]}, geometry=[shapely.union_all([*squares, neck])], crs="EPSG:32630")
    vector_files.write([frame], tmp_path / "one.parquet")
    vector_files.convert(tmp_path / "one.parquet", tmp_path / f"one{suffix}")
    (found,) = gpd.read_file(tmp_path / f"one{suffix}").to_crs("EPSG:32630").geometry
    assert found.geom_type == "Polygon"
    assert found.is_valid
    assert found.area == pytest.approx(100, rel=0.01)


def test_specks_leave_no_corner_in_the_wall_beside_them():
    labels = np.zeros((120, 160), np.int32)
    labels[20:100, 30:130] = 1
    for number, col in enumerate(range(40, 120, 8), 2):
        labels[18:20, col : col + 3] = number  # 0.06 m2 each
    percents = np.full(labels.shape, 80, np.uint8)
    block = LabelBlock(Window(0, 0, 160, 120), percents, labels)
    grid = GeoBox(CRS, Affine(0.1, 0, 500_000, 0, -0.1, 620_000), 120, 160)
    options = {"scene": "one", "outline": "simple", "min_hole_m2": 1}
    (frame,) = vector_files.frames(polygonize.trace([block]), grid, min_area_m2=2, **options)
    assert len(frame) == 1
    assert shapely.get_num_coordinates(frame.geometry.iloc[0]) - 1 == 4
    (with_specks,) = vector_files.frames(polygonize.trace([block]), grid, min_area_m2=0, **options)
    assert len(with_specks) == 11
