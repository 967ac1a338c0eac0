import numpy as np
import pytest
import shapely
from conftest import CRS, TRANSFORM
from shapely import affinity

from ocmlflow.prediction import outlines
from ocmlflow.prediction.outlines import WrittenOutlines

EQUAL_AREA = "+proj=cea +lat_ts=30 +lon_0=-3 +datum=WGS84"


def on_ground(*shapes: shapely.Geometry) -> np.ndarray:
    """Shapes in metres, in a scene of the tests."""
    return np.array([affinity.translate(shape, TRANSFORM.c, TRANSFORM.f) for shape in shapes], object)


def overlap_m2(shapes: np.ndarray) -> float:
    return sum(float(shapely.area(a & b)) for number, a in enumerate(shapes) for b in shapes[:number])


def test_what_rounding_would_spoil_is_repaired_before_it_does():
    """A neck and a hole of 0.4 mm and a speck of 1 mm; a plain building stays as it is to the last digit."""
    neck = shapely.union_all([shapely.box(0, 0, 5, 5), shapely.box(5, 2.123, 8, 2.1234), shapely.box(8, 0, 12, 5)])
    slit = shapely.box(20, 0, 30, 5) - shapely.box(22, 1.001, 28, 1.0014)
    plain = affinity.rotate(shapely.box(40, 0, 50, 7) - shapely.box(42, 2, 44, 4), 17)
    given = on_ground(neck, slit, plain, shapely.box(60, 0, 60.001, 0.001))
    apart, whole, same, nothing = outlines.rounding_safe(given, CRS)
    assert [round(part.area) for part in outlines.polygons(apart)] == [25, 20]
    assert (whole.geom_type, len(whole.interiors)) == ("Polygon", 0)
    assert shapely.equals_exact(same, given[2])
    assert not outlines.polygons(nothing)
    safe = np.array([*outlines.polygons(apart), whole, same], object)
    degrees = outlines.to_degrees(safe, CRS)
    assert shapely.is_valid(degrees).all()
    assert set(shapely.get_type_id(degrees)) == {shapely.GeometryType.POLYGON}
    assert (shapely.get_num_interior_rings(degrees) == shapely.get_num_interior_rings(safe)).all()
    points = shapely.get_coordinates(degrees)
    np.testing.assert_array_equal(points, points.round(7))


@pytest.mark.parametrize("seed", range(5))
def test_spotted_roofs_stay_polygons_when_rounded(seed):
    """Thin triangles as holes, some below the rounding."""
    random = np.random.default_rng(seed)
    roof = shapely.box(0, 0, 10, 10)
    for col, row in np.ndindex(5, 5):
        corner = np.array([2 * col, 2 * row]) + 0.5
        tip = corner + random.uniform(0, 1, 2)
        roof -= shapely.Polygon([corner, tip, tip + random.uniform(0, 0.03, 2)])
    (safe,) = outlines.rounding_safe(on_ground(roof), CRS)
    (rounded,) = outlines.to_degrees(np.array([safe]), CRS)
    assert (rounded.geom_type, rounded.is_valid) == ("Polygon", True)
    assert len(rounded.interiors) == len(safe.interiors)
    assert safe.area == pytest.approx(roof.area, abs=0.3)


def test_a_building_across_180_degrees_is_cut_there():
    roof = shapely.box(833_960, 1000, 833_990, 1010)  # of zone 60 north, on its eastern edge
    crossing = affinity.translate(roof, 833_978.56 - 833_975, 0)
    (cut,) = outlines.rounding_safe(np.array([crossing], object), "EPSG:32660")
    parts = outlines.polygons(cut)
    assert len(parts) == 2
    assert sum(part.area for part in parts) == pytest.approx(crossing.area, rel=1e-3)
    degrees = outlines.to_degrees(np.array(parts, object), "EPSG:32660")
    west, _, east, _ = shapely.bounds(degrees).T
    assert (east - west < 1e-3).all()
    assert sorted(np.abs([west, east]).max(axis=0)) == [180, 180]


@pytest.mark.parametrize("crs", [CRS, "EPSG:4326"])
def test_holes_below_an_area_are_filled_and_courtyards_stay(crs):
    roof = shapely.box(0, 0, 20, 20) - shapely.box(2, 2, 3.1, 3.1) - shapely.box(5, 5, 5.9, 5.9)
    given = on_ground(roof, shapely.box(30, 0, 40, 10))
    if crs != CRS:
        given = outlines.to_degrees(given, CRS)
    filled, plain = outlines.fill_holes(given, crs, equal_area=EQUAL_AREA, min_hole_m2=1)
    assert shapely.equals_exact(plain, given[1])
    assert shapely.equals_exact(filled.exterior, given[0].exterior)
    (hole,) = filled.interiors
    assert hole.equals(given[0].interiors[0])
    both = outlines.fill_holes(given, crs, equal_area=EQUAL_AREA, min_hole_m2=0)
    assert shapely.equals_exact(both, given).all()


def star(points: int, *, depth: float) -> shapely.Polygon:
    """A round outline of 100 m with teeth of a depth."""
    angles = np.linspace(0, 2 * np.pi, points, endpoint=False)
    radii = np.where(np.arange(points) % 2, 100 - depth, 100)
    return shapely.Polygon(np.column_stack([radii * np.cos(angles), radii * np.sin(angles)]))


def test_outlines_with_too_many_corners_are_simplified_and_else_split():
    smooth, ragged, short = given = on_ground(star(3000, depth=0.15), star(6000, depth=30), star(500, depth=5))
    simplified, split, same = outlines.shorten(given, tolerance=0.1)
    assert shapely.equals_exact(same, short)
    assert simplified.geom_type == "Polygon"
    assert shapely.get_num_coordinates(simplified) < 2000
    assert simplified.area == pytest.approx(smooth.area, rel=0.01)
    parts = outlines.polygons(split)
    assert len(parts) > 1
    assert max(shapely.get_num_coordinates(parts)) < 2000
    assert sum(part.area for part in parts) == pytest.approx(ragged.area, rel=1e-3)
    assert overlap_m2(np.array(parts)) == 0


def test_overlaps_are_cut_once_in_every_crs_and_batch():
    """The larger keeps its outline, what is written already too; corners may touch."""
    written = WrittenOutlines()
    older = on_ground(shapely.box(0, 0, 4, 4), shapely.box(100, 100, 104, 104))
    written.add(older)
    turned = affinity.rotate(shapely.box(3.9, 0, 14, 9), 3)
    small = affinity.rotate(shapely.box(13.8, 0, 18, 5), 11)
    covered = shapely.box(8, 3, 9, 4)
    corner = shapely.box(-3, -3, 0, 0)
    given = on_ground(small, turned, covered, corner)
    assert overlap_m2(np.array([*older, *given])) > 1
    cut = outlines.cut_overlaps(given, written, CRS)
    assert cut[2].is_empty
    assert shapely.equals_exact(cut[3], given[3])
    kept = np.array([older[0], *cut[[0, 1, 3]]], object)
    assert overlap_m2(kept) == 0
    assert overlap_m2(outlines.to_degrees(kept, CRS)) == 0
    assert shapely.hausdorff_distance(cut[1], given[1] - older[0]) < 0.06
    assert shapely.hausdorff_distance(cut[0], given[0] - given[1]) < 0.06
    assert outlines.cut_overlaps(cut[[0, 1, 3]], written, CRS) is None
    assert outlines.cut_overlaps(np.empty(0, object), written, CRS) is None


def test_a_hair_between_neighbours_is_no_overlap_after_rounding():
    edge = np.linspace((4, 0), (6, 10), 60)
    left = shapely.Polygon([(0, 0), *edge, (0, 10)])
    right = shapely.Polygon([(10, 0), (4.0001, 0), (6.0001, 10), (10, 10)])
    given = on_ground(left, right)
    assert overlap_m2(given) == 0
    assert overlap_m2(outlines.to_degrees(given, CRS)) > 0
    cut = outlines.cut_overlaps(given, WrittenOutlines(), CRS)
    assert overlap_m2(cut) == overlap_m2(outlines.to_degrees(cut, CRS)) == 0
    assert shapely.area(cut) == pytest.approx(shapely.area(given), rel=0.02)


def test_an_outline_that_crosses_itself_is_made_valid():
    """Two triangles that meet in a point, and a hole that leaves its outline."""
    crossed = shapely.Polygon([(0, 0), (10, 10), (10, 0), (0, 10)])
    open_hole = shapely.Polygon([(0, 0), (9, 0), (9, 9), (0, 9)], [[(4, 4), (14, 4), (14, 5), (4, 5)]])
    moved = shapely.transform(np.array([crossed, open_hole]), lambda points: np.add(points, (500_000, 620_000)))
    degrees = outlines.to_degrees(moved, CRS)
    assert shapely.is_valid(degrees).all()
    areas = shapely.area(outlines.from_degrees(degrees, CRS))
    np.testing.assert_allclose(areas, [50, 76], rtol=0.01)
