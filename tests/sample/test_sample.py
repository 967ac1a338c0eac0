import json
from pathlib import Path

import numpy as np
import pystac
import pytest
import rasterio
import shapely
from rasterio import Affine
from rasterio.errors import NotGeoreferencedWarning
from rasterio.features import rasterize
from rasterio.warp import transform_geom
from scipy import ndimage
from shapely import Polygon

from ocmlflow.sample import catalog
from ocmlflow.sample.catalog import SceneSpec
from ocmlflow.sample.render import DrawnScene, draw

COARSE = 0.3  # metres a pixel


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("sample") / "sample"
    catalog.write(path, seed=0)
    return path


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def scenes(folder: Path) -> list[Path]:
    return sorted((folder / "train_tier_1").glob("*/*/*.tif"))


def read(path: Path) -> tuple[np.ndarray, np.ndarray, float]:
    """Bands (4, height, width), label burnt on the scene's grid, and GSD in metres."""
    footprints = path.parent.parent / f"{path.stem}-labels" / f"{path.stem}.geojson"
    shapes = [feature["geometry"] for feature in json.loads(footprints.read_text())["features"]]
    with rasterio.open(path) as scene:
        located = [transform_geom("EPSG:4326", scene.crs, shape) for shape in shapes]
        return scene.read(), rasterize(located, scene.shape, transform=scene.transform), scene.res[0]


def draw_coarsely(spec: SceneSpec, seed: int) -> DrawnScene:
    height, width = (round(length * spec.gsd / COARSE) for length in spec.shape)
    return draw(
        catalog.PLACES[spec.place].land,
        shape=(height, width),
        gsd=COARSE,
        density=spec.density,
        ragged=True,
        seed=[seed],
    )


def test_pystac_reads_the_catalogue_in_the_layout_of_the_challenge(folder):
    catalog = pystac.Catalog.from_file(folder / "train_tier_1" / "catalog.json")
    places = list(catalog.get_children())
    assert len(places) == 2
    for place in places:
        items = list(place.get_items())
        assert [item.id for item in items[1::2]] == [f"{item.id}-labels" for item in items[::2]]
        for item in items:
            assert item.properties["area"] == place.id
            assert "synthetic" in item.properties["license"]
            (asset,) = item.assets.values()
            assert Path(asset.get_absolute_href()).is_file()
            assert not item.get_links("source")
        assert all(list(item.assets) == ["image"] for item in items[::2])
        assert all(list(item.assets) == ["labels"] for item in items[1::2])


def test_scenes_lie_in_two_zones_on_both_hemispheres_at_their_own_resolutions(folder):
    zones, resolutions, shapes = set(), set(), set()
    for path in scenes(folder):
        with rasterio.open(path) as scene:
            zones.add(scene.crs.to_epsg())
            resolutions.add(scene.res[0])
            shapes |= set(scene.shape)
            assert scene.overviews(1)
            item = json.loads(path.with_suffix(".json").read_text())
            west, south, east, north = rasterio.warp.transform_bounds(scene.crs, "EPSG:4326", *scene.bounds)
            assert west <= item["bbox"][0] < item["bbox"][2] <= east
            assert south <= item["bbox"][1] < item["bbox"][3] <= north
    assert {zone // 100 for zone in zones} == {326, 327}
    assert len(resolutions) == 4
    assert not any(length % 256 == 0 for length in shapes)


def test_labels_cover_a_plausible_share_of_the_imagery_and_nothing_else(folder):
    for path in scenes(folder):
        bands, label, _ = read(path)
        valid = bands[3] > 127
        assert 0.05 < label[valid].mean() < 0.5
        assert label[~valid].mean() < 0.002  # pixels that the outline cuts
        assert 0.02 < np.mean(~valid) < 0.4


def test_outlines_sit_on_the_roofs(folder):
    for path in scenes(folder):
        bands, label, gsd = read(path)
        valid = ndimage.binary_erosion(bands[3] > 127, iterations=round(4 / gsd))
        gradient = ndimage.gaussian_gradient_magnitude(bands[:3].mean(axis=0), 1.0)

        def fit(rows, cols, label=label, valid=valid, gradient=gradient):
            moved = np.roll(label, (rows, cols), axis=(0, 1))
            edge = (ndimage.grey_dilation(moved, 3) > ndimage.grey_erosion(moved, 3)) & valid
            return gradient[edge].mean()

        step = round(3 / gsd)
        shifted = [fit(rows, cols) for rows, cols in ((step, 0), (-step, 0), (0, step), (0, -step))]
        assert fit(0, 0) > 1.5 * max(shifted)
        near = [fit(rows, cols) for rows, cols in ((5, 0), (-5, 0), (0, 5), (0, -5))]
        assert fit(0, 0) > 1.2 * max(near)


def test_footprints_come_in_every_kind(folder):
    kinds, holes = set(), 0
    for path in (folder / "train_tier_1").rglob("*.geojson"):
        record = json.loads(path.read_text())
        assert record["crs"]["properties"]["name"] == "urn:ogc:def:crs:OGC:1.3:CRS84"
        for feature in record["features"]:
            assert feature["properties"] == {"building": "yes"}
            kinds.add(feature["geometry"]["type"])
            holes += feature["geometry"]["type"] == "Polygon" and len(feature["geometry"]["coordinates"]) > 1
    assert kinds == {"Polygon", "MultiPolygon"}
    assert holes


def test_alpha_is_lossy_in_the_jpeg_scenes_alone(folder):
    compressions = set()
    for path in scenes(folder):
        with rasterio.open(path) as scene:
            assert scene.colorinterp[3] == rasterio.enums.ColorInterp.alpha
            values = set(np.unique(scene.read(4)).tolist())
            jpeg = scene.profile["compress"] == "jpeg"
        assert {0, 255} < values if jpeg else {0, 255} == values
        compressions.add((path.parent.parent.name, jpeg))
    assert len(compressions) == 4  # both in both places


def test_chips_tell_nothing_of_where_they_lie(folder):
    catalog = pystac.Catalog.from_file(folder / "test" / "catalog.json")
    items = list(catalog.get_items())
    assert len(items) == 6
    ragged = 0
    for item in items:
        with pytest.warns(NotGeoreferencedWarning):
            chip = rasterio.open(item.assets["image"].get_absolute_href())
        with chip:
            assert (chip.crs, chip.shape, chip.count) == (None, (1024, 1024), 4)
            ragged += bool((chip.read(4) == 0).any())
    assert ragged == 1


def test_same_seed_gives_the_same_bytes(folder, tmp_path):
    (tmp_path / "same.part" / "test").mkdir(parents=True)  # of a run cut short
    catalog.write(tmp_path / "same", seed=0)
    assert files(tmp_path / "same") == files(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["same"]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("spec", catalog.SCENES, ids=lambda spec: spec.name)
def test_scenery_of_any_seed_has_what_a_sample_needs(spec, seed):
    drawn = draw_coarsely(spec, seed)
    label = rasterize(drawn.buildings, drawn.valid.shape, transform=Affine.scale(COARSE))
    assert 0.15 < label[drawn.valid].mean() < 0.45
    assert label[~drawn.valid].mean() < 0.02  # pixels that the outline cuts
    assert (drawn.image.max(axis=-1) > 0).tolist() == drawn.valid.tolist()
    assert sum(shape.area for shape in drawn.buildings) == pytest.approx(shapely.union_all(drawn.buildings).area)
    assert shapely.is_valid(drawn.buildings).all()
    assert sum(building.geom_type == "MultiPolygon" for building in drawn.buildings) == 1
    polygons = [building for building in drawn.buildings if building.geom_type == "Polygon"]
    assert any(polygon.interiors for polygon in polygons)  # a courtyard
    filled = [Polygon(polygon.exterior) for polygon in polygons]
    assert any(shape.area < 0.9 * shape.convex_hull.area for shape in filled)  # an L or a U


def test_seeds_give_different_scenery():
    images = {draw_coarsely(catalog.SCENES[0], seed).image.tobytes() for seed in (0, 1, 1)}
    assert len(images) == 2


def test_an_existing_folder_is_refused_and_unchanged(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="exists; the sample needs a new folder"):
        catalog.write(tmp_path, seed=0)
    assert files(tmp_path) == {"mine.txt": b"mine"}


def test_a_run_cut_short_leaves_nothing_of_that_name(tmp_path, monkeypatch):
    monkeypatch.setattr(catalog, "draw", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        catalog.write(tmp_path / "sample", seed=0)
    assert not (tmp_path / "sample").exists()
