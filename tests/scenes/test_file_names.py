import pytest

from ocmlflow.scenes import file_names


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("a.tif", "a.geojson"),
        ("A.tif", "a.geojson"),
        ("a.TIF", "A.GeoJSON"),
        ("a.tif", "a_labels.geojson"),
        ("a.tif", "a-label.gpkg"),
        ("a.tif", "a_Buildings.geojson"),
        ("a.tif", "a_building_footprints.geojson"),
        ("a.tif", "labels_a.geojson"),
        ("a_image.tif", "a_label.geojson"),
        ("image_7.tif", "label_7.geojson"),
        ("a.b.tif", "a.b.geojson"),
    ],
)
def test_a_label_file_belongs_to_the_image_of_the_same_name_but_for_words_and_capitals(image, label):
    images = [f"/data/{image}", "/data/other.tif"]
    assert file_names.pair(images, [f"/data/{label}"]) == {images[0]: [f"/data/{label}"], images[1]: []}


@pytest.mark.parametrize(("image", "label"), [("a.tif", "b.geojson"), ("a.tif", "ab.geojson"), ("a1.tif", "a.geojson")])
def test_other_names_are_not_paired(image, label):
    assert file_names.pair([image], [label]) == {image: []}


def test_an_equal_name_decides_over_a_similar_one():
    images = ["a.tif", "A.tif", "a_labels.tif"]
    assert file_names.pair(images, ["a_labels.geojson", "A.geojson"]) == {
        "a.tif": [],
        "A.tif": ["A.geojson"],
        "a_labels.tif": ["a_labels.geojson"],
    }


def test_vector_files_are_taken_before_rasters():
    assert file_names.pair(["i/a.tif", "i/b.tif"], ["l/a.tif", "l/a.geojson", "l/b.tif"]) == {
        "i/a.tif": ["l/a.geojson"],
        "i/b.tif": ["l/b.tif"],
    }


def test_a_raster_named_as_labels_of_another_is_no_image():
    files = ["a.tif", "a_mask.tif", "A_labels.TIF", "b_mask.tif", "a.geojson"]
    assert file_names.images_among(files) == ["a.tif", "b_mask.tif"]


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        (["c0", "c1"], ["/d/x/t.json", "/d/x/t.json"], ["c0-t", "c1-t"]),
        (["", ""], ["/d/p1/odm/t.tif", "/d/p2/odm/t.tif"], ["p1-t", "p2-t"]),
        (["odm", "odm"], ["p1/odm/t.tif", "p2/odm/t.tif"], ["p1-t", "p2-t"]),
        (["c", "c", "c"], ["d/a/x/t", "d/a/y/t", "d/b/x/t"], ["a-x-t", "a-y-t", "b-x-t"]),
        (["", ""], ["s3://b/one two/t.tif", "s3://b/.three/t.tif"], ["one_two-t", "three-t"]),
        (["", ""], ["d/t.tif", "d/t.tif"], ["t", "t"]),
    ],
)
def test_equal_names_are_told_apart(groups, files, expected):
    names = ["t"] * len(groups)
    assert file_names.tell_apart(["u", *names], ["", *groups], ["u.tif", *files]) == ["u", *expected]
    assert file_names.tell_apart(names[::-1], groups[::-1], files[::-1]) == expected[::-1]
