import shapely

from ocmlflow.chips import summary


def test_the_item_of_chips_across_180_degrees_lies_on_both_sides_of_it(made):
    west, east = shapely.box(179.9, -17, 180, -16), shapely.box(-180, -17, -179.8, -16)
    index = made.index.iloc[:3].assign(scene="a").set_geometry([west, shapely.MultiPolygon([west, east]), east])
    item = summary.stac_item(index, [], gsd=0.1)
    assert item["bbox"] == [179.9, -17, -179.8, -16]
    assert shapely.geometry.shape(item["geometry"]).equals(shapely.union_all([west, east]))
