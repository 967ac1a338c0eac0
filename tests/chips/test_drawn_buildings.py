from ocmlflow.chips import drawn_buildings


def test_a_chip_set_of_earlier_versions_has_none(made):
    assert drawn_buildings.read(made, ["aaa"]) is None
