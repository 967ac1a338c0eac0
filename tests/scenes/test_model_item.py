import json

import pystac
import pytest
import shapely
from pystac.extensions.mlm import AssetGeneralMLMExtension, MLMExtension
from pystac.validation.stac_validator import JsonSchemaSTACValidator

from ocmlflow.scenes import model_item


@pytest.mark.parametrize("outline", [shapely.box(32.5, 0.2, 32.6, 0.3), None])
def test_a_model_is_a_valid_item_that_says_what_goes_in_and_out(outline, tmp_path):
    built = model_item.build_model_item(
        "buildings-1",
        architecture="fpn on efficientnet-lite0",
        channels=["building", "distance"],
        keras_version="3.15.1",
        outline=outline,
        catalogs=["https://me:secret@example.org/catalog.json"],
        description="about",
        gsd=0.1,
        license="CC-BY-4.0",
    )
    assert "secret" not in json.dumps(built)
    (tmp_path / "item.json").write_text(json.dumps(built))
    item = pystac.Item.from_file(str(tmp_path / "item.json"))
    JsonSchemaSTACValidator().validate_core(
        json.loads(json.dumps(built)), pystac.STACObjectType.ITEM, pystac.get_stac_version()
    )
    model = MLMExtension.ext(item)
    assert (model.mlm_name, model.architecture) == ("buildings-1", "fpn on efficientnet-lite0")
    assert [str(task) for task in model.tasks] == ["semantic-segmentation"]
    assert model.input[0].input.shape == [-1, -1, -1, 3]
    assert model.output[0].result.shape == [-1, -1, -1, 2]
    assert item.assets["model"].roles == ["mlm:model"]
    assert AssetGeneralMLMExtension.ext(item.assets["model"]).artifact_type == "keras.Model.save"
    assert item.assets["model"].get_absolute_href() == str(tmp_path / "data" / "model.keras")
