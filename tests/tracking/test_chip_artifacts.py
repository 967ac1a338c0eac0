"""Files of chips are fetched through MLflow's artifact repositories."""

import errno
import hashlib
import json
import shutil
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import shapely
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repo import ArtifactRepository

from ocmlflow.chips import chip_set, drawn_buildings
from ocmlflow.storage import hrefs
from ocmlflow.tracking import chip_artifacts

LISTED = ("index.parquet", "chips.json", drawn_buildings.NAME)


class Repository(ArtifactRepository):
    """One file, whose download fails with the given error."""

    def __init__(self, error: Exception | None) -> None:
        super().__init__("test:/chips")
        self.error = error

    def log_artifact(self, local_file, artifact_path=None):
        raise NotImplementedError

    def log_artifacts(self, local_dir, artifact_path=None):
        raise NotImplementedError

    def list_artifacts(self, path=None):
        return []

    def _download_file(self, remote_file_path, local_path):
        if self.error:
            raise self.error
        Path(local_path).write_bytes(remote_file_path.encode())


def fetch(error: Exception | None, folder: Path, monkeypatch) -> Path:
    monkeypatch.setattr(chip_artifacts, "get_artifact_repository", lambda _: Repository(error))
    chip_artifacts._download("test:/chips", "0/images.zarr", folder / "part")
    return folder / "part"


def test_a_file_is_fetched_and_nothing_else_is_left(tmp_path, monkeypatch):
    assert fetch(None, tmp_path, monkeypatch).read_bytes() == b"0/images.zarr"
    assert [file.name for file in tmp_path.iterdir()] == ["part"]


def test_a_full_disk_is_an_os_error_at_which_the_cache_makes_room(tmp_path, monkeypatch):
    with pytest.raises(OSError, match="No space left") as caught:
        fetch(OSError(errno.ENOSPC, "No space left on device"), tmp_path, monkeypatch)
    assert caught.value.errno == errno.ENOSPC
    assert not list(tmp_path.iterdir())


def test_any_other_error_stays_that_of_mlflow(tmp_path, monkeypatch):
    with pytest.raises(MlflowException, match="connection reset"):
        fetch(ConnectionError("connection reset"), tmp_path, monkeypatch)


def test_chips_in_s3_are_those_of_a_folder(made, s3, tmp_path, monkeypatch):
    copy = shutil.copytree(made.folder, tmp_path / "chips")
    drawn = gpd.GeoDataFrame({"scene": ["aaa", "kkk"]}, geometry=[shapely.box(0, 0, 1, 1)] * 2, crs="EPSG:4326")
    drawn.to_parquet(copy / drawn_buildings.NAME)
    hashes = {file: {"sha256": hashlib.sha256((copy / file).read_bytes()).hexdigest()} for file in LISTED}
    (copy / chip_set.FILE_LIST).write_text(json.dumps(hashes))
    hrefs.mirror(str(copy), f"{s3}/chips")
    monkeypatch.setattr(chip_artifacts, "_address", lambda run_id: f"{s3}/chips")
    monkeypatch.setattr(chip_artifacts, "CACHE", tmp_path / "cache")
    remote = chip_set.load(chip_artifacts.open_folder("a" * 32))
    for row in made.index.itertuples():
        for ours, theirs in zip(chip_set.read(remote.folder, row), chip_set.read(made.folder, row), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert drawn_buildings.read(remote, ["kkk"]).scene.tolist() == ["kkk"]
