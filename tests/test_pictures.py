import numpy as np
from conftest import noise

from ocmlflow import pictures


def where(*at) -> np.ndarray:
    found = np.zeros((6, 8), bool)
    for row, col in at:
        found[row, col] = True
    return found


def test_outlines_are_drawn_over_the_image_and_nothing_else_is():
    image, label = noise(6, 8), np.zeros((6, 8), np.uint8)
    label[1:5, 2:7] = 1
    valid = ~where((0, 0))
    found = pictures.draw_outlines(image, label, valid)
    edge = (label == 1) & ~np.pad(np.ones((2, 3), bool), ((2, 2), (3, 2)))
    assert (found[edge] == pictures.OUTLINE_COLOUR).all()
    assert (found[0, 0] == pictures.INVALID_COLOUR).all()
    np.testing.assert_array_equal(found[~edge & valid], image[~edge & valid])
    np.testing.assert_array_equal(image, noise(6, 8))  # the image itself is left alone


def test_grey_is_the_probability():
    found = pictures.to_grey(np.array([[0, 0.5, 1, 1.2]]))
    assert found.tolist() == [[[0] * 3, [127] * 3, [255] * 3, [255] * 3]]


def test_errors_have_colours_of_their_own():
    image = np.full((6, 8, 3), 100, np.uint8)
    building, label = where((0, 0), (0, 1)), where((0, 0), (0, 2))
    found = pictures.draw_errors(image, building, label.astype(np.uint8), ~where((5, 5)))
    kinds = [tuple(found[at]) for at in ((0, 0), (0, 1), (0, 2), (3, 3), (5, 5))]
    assert len(set(kinds)) == 5
    assert kinds[3] == (100, 100, 100)
    assert kinds[4] == pictures.INVALID_COLOUR
    for kind, colour in zip(kinds, (pictures.HIT_COLOUR, pictures.FALSE_COLOUR, pictures.MISSED_COLOUR), strict=False):
        assert np.argmax(kind) == np.argmax(colour)


def test_what_is_building_is_tinted():
    image = noise(6, 8)
    found = pictures.tint_buildings(image, where((2, 3)))
    assert found.dtype == np.uint8
    assert not (found[2, 3] == image[2, 3]).all()
    np.testing.assert_array_equal(found[~where((2, 3))], image[~where((2, 3))])


def test_a_sheet_holds_every_picture_whole():
    rows = [[noise(5, 7, seed=3 * row + col) for col in range(3)] for row in range(2)]
    found = pictures.contact_sheet(rows)
    assert found.shape == (2 * 11 + 6, 3 * 13 + 6, 3)
    for row in range(2):
        for col in range(3):
            top, left = 6 + 11 * row, 6 + 13 * col
            np.testing.assert_array_equal(found[top : top + 5, left : left + 7], rows[row][col])
