"""Chips as artifacts of runs: finds the run, uploads and reads them, and tells which of them a model has seen."""

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import geopandas as gpd
import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.runs_artifact_repo import RunsArtifactRepository

from ocmlflow.chips import chip_set, zarr_store
from ocmlflow.chips.chip_set import FILE_LIST, ChipSet
from ocmlflow.chips.zarr_store import Folder, RemoteFolder
from ocmlflow.errors import InputError
from ocmlflow.storage import hrefs, range_cache
from ocmlflow.storage.range_cache import RangeCache
from ocmlflow.tracking import run_artifacts, run_search, runs
from ocmlflow.tracking.model_facts import ChipSplit
from ocmlflow.tracking.outbox_sender import SERVER_ERRORS
from ocmlflow.tracking.registry import Model
from ocmlflow.tracking.run_artifacts import Dataset

DIGEST = "ocmlflow.chips.digest"
"""Tag of a run: digest of the chips that it made or used."""
LICENCES = "ocmlflow.licences"
"""Tag of a `prepare` run: licences of the imagery, separated by commas; empty where none is stated."""
CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "ocmlflow"
LAST_FILE = "chips.json"
"""File that is uploaded last."""
UPLOADS = 2
"""Files that are uploaded at the same time."""


def resolve_run(chips: str | None) -> str:
    """Run id of the chips that a run id or `runs:/` address names; if None, of the newest finished `prepare` run."""
    if chips is None:
        newest = run_search.newest_finished("prepare")
        if newest is None:
            raise InputError(
                "this experiment has no finished `prepare` run: make chips first, with "
                "`mlflow run . -e prepare -P catalog=HREF`, or name such a run of another one with chips=RUN_ID"
            )
        return str(newest.info.run_id)
    run_id = chips.removeprefix("runs:/").split("/")[0]
    try:
        run = mlflow.get_run(run_id)
    except MlflowException as error:
        raise InputError(f"chips={chips} names no run of {mlflow.get_tracking_uri()}") from error
    if run.data.tags.get(runs.VERB) != "prepare" or run.info.status != "FINISHED":
        verb = run.data.tags.get(runs.VERB, "foreign")
        raise InputError(
            f"chips={chips}: a finished `prepare` run is needed, that one is a {run.info.status} `{verb}` run"
        )
    return run_id


def licences(run_ids: Iterable[str]) -> list[str]:
    """Licences of the imagery that the chips of these `prepare` runs show, as far as they are known here."""
    known: set[str] = set()
    for run_id in run_ids:
        with suppress(*SERVER_ERRORS):  # of a model from another server
            known |= set(mlflow.get_run(run_id).data.tags.get(LICENCES, "").split(", "))
    return sorted(known - {""})


def digest(run_id: str) -> str:
    """Digest of the chips of a `prepare` run."""
    return str(mlflow.get_run(run_id).data.tags[DIGEST])


def open_folder(run_id: str) -> Folder:
    """The folder with the chips of a `prepare` run, on this machine or elsewhere.

    Files of a remote folder are read when first needed, and kept in the user's cache: parts of them from s3://
    addresses, whole ones through MLflow's server. InputError, naming the file, where something cannot be read.
    """
    address = _address(run_id)
    if urlparse(address).scheme in ("", "file"):
        return hrefs.local_path(address)
    cache = RangeCache(CACHE / "chips", range_cache.size_limit(CACHE / "chips"))
    with _as_input_error(f"the chips of run {run_id} cannot be listed"):
        sizes = _sizes(address)
        # The digest keeps chips that were replaced from being read from the cache.
        key = f"{run_id}-{hrefs.digest(repr(_list_of(address, sizes)))[:8]}"
    if address.startswith("s3://"):
        fetch = range_cache.open_ranges(address, sizes, cache, key)
    else:
        fetch = range_cache.open_whole_files(address, sizes, cache, key, partial(_download, address))

    def read(name: str, first: int, count: int | None) -> bytes:
        if name not in sizes:  # as of a local folder: readers ask for arrays that not all chips have
            raise FileNotFoundError(f"{address}/{name} does not exist")
        with _as_input_error(f"cannot read {name} of the chips of run {run_id}"):
            return fetch(name, first, count)

    return RemoteFolder(address, read, cache.folder / key)


def open_chips(run_id: str, *, fold: int | None = None) -> ChipSet:
    """The chips of a `prepare` run, with that fold held out if one is given; pixels are read when they are needed.

    Raises InputError where index or rules are damaged, or are not those that the run made.
    """
    chips = replace(chip_set.load(open_folder(run_id)), run=run_id)
    logged = mlflow.get_run(run_id).data.tags.get(DIGEST)
    if logged and logged != chip_set.digest(chips.index):
        reason = f"it does not give the digest {logged} of run {run_id}, so these are other chips"
        raise zarr_store.damaged(chips.folder, "index.parquet", reason)
    return chips if fold is None else chip_set.hold_out_fold(chips, fold)


def upload(source: Path, run_id: str) -> tuple[int, int]:
    """Upload the chips in a local folder to a run; how many files were uploaded, and their bytes.

    Files that an earlier upload brought are not sent again: their size and the hash in the list of files, which is
    uploaded first, equal those of the local file. InputError where the upload fails; called again, it goes on.
    """
    address = _address(run_id)
    names = hrefs.list_recursive(str(source))
    repository = get_artifact_repository(address)
    files = {name: {"bytes": size, "sha256": _sha256(source / name)} for name, size in names.items()}
    with _as_input_error(f"the chips cannot be uploaded to run {run_id}; run `prepare` again to go on"):
        sizes = _sizes(address)
        listed = _list_of(address, sizes)
        intact = _intact(address, sizes, listed)
        same = {name for name in names if name in intact and listed[name] == files[name]}
        for name in sizes.keys() - same - {FILE_LIST}:  # before a list that names them anew
            repository.delete_artifacts(name)
        with tempfile.TemporaryDirectory() as scratch:
            (Path(scratch) / FILE_LIST).write_text(json.dumps(files, indent=1, sort_keys=True))
            repository.log_artifact(f"{scratch}/{FILE_LIST}")
        missing = sorted(names.keys() - same, key=lambda name: (name == LAST_FILE, name))
        with ThreadPoolExecutor(UPLOADS) as executor:
            for _ in executor.map(partial(_upload_file, repository, source), missing[:-1]):
                pass
        for name in missing[-1:]:
            _upload_file(repository, source, name)
    return len(missing), sum(names[name] for name in missing)


def is_complete(run_id: str) -> bool:
    """Whether all files of the chips are among the artifacts of the run, as their list says.

    Files on this machine are compared by their hash, which reads a gigabyte a second; others by their size.
    """
    address = _address(run_id)
    with _as_input_error(f"the chips of run {run_id} cannot be listed"):
        sizes = _sizes(address)
        listed = _list_of(address, sizes)
    return LAST_FILE in listed and listed.keys() <= _intact(address, sizes, listed)


@contextmanager
def _as_input_error(message: str) -> Iterator[None]:
    """Turn errors of MLflow and S3 in the block into an InputError that begins with this message."""
    try:
        yield
    except SERVER_ERRORS as error:
        raise InputError(f"{message}: {error}") from error


def _address(run_id: str) -> str:
    return str(RunsArtifactRepository.get_underlying_uri(f"runs:/{run_id}/chips"))


def _sizes(address: str) -> dict[str, int]:
    """Names and sizes of the files at an address, those in folders too."""
    if address.startswith("s3://"):
        return hrefs.list_recursive(address)
    repository = get_artifact_repository(address)
    sizes: dict[str, int] = {}
    folders = [""]
    while folders:
        for entry in repository.list_artifacts(folders.pop() or None):
            if entry.is_dir:
                folders.append(entry.path)
            else:
                sizes[entry.path] = int(entry.file_size or 0)
    return sizes


def _intact(address: str, sizes: Mapping[str, int], listed: Mapping[str, dict[str, Any]]) -> set[str]:
    """Names of the listed files that are there: with their size and, on this machine, their hash."""
    same_size = {name for name, file in listed.items() if sizes.get(name) == file["bytes"]}
    if urlparse(address).scheme not in ("", "file"):
        return same_size
    folder = hrefs.local_path(address)
    return {name for name in same_size if _sha256(folder / name) == listed[name]["sha256"]}


def _list_of(address: str, sizes: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """The uploaded list of files, with `bytes` and `sha256` of each; empty if there is none that can be read."""
    if FILE_LIST not in sizes:
        return {}
    with tempfile.TemporaryDirectory() as scratch:
        _download(address, FILE_LIST, Path(scratch) / FILE_LIST)
        try:
            listed = json.loads((Path(scratch) / FILE_LIST).read_bytes())
            return {name: {"bytes": file["bytes"], "sha256": file["sha256"]} for name, file in listed.items()}
        except (AttributeError, KeyError, TypeError, ValueError):  # damaged: then no file is taken for the one written
            return {}


def _download(address: str, name: str, target: Path) -> None:
    repository = get_artifact_repository(address)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        try:
            shutil.move(repository.download_artifacts(name, scratch), target)
        except MlflowException as error:
            # MLflow wraps the errors of a full disk, at which the cache makes room.
            for number in (errno.ENOSPC, errno.EDQUOT):
                if f"[Errno {number}]" in str(error):
                    raise OSError(number, os.strerror(number), str(target)) from error
            raise


def _upload_file(repository: ArtifactRepository, source: Path, name: str) -> None:
    repository.log_artifact(str(source / name), str(Path(name).parent) if "/" in name else None)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def training_rows(model: Model) -> gpd.GeoDataFrame:
    """Index rows of the chips that a model, and the models it started from, were trained on."""
    return _rows(model.facts.trained_on, "train")


def validation_rows(model: Model) -> gpd.GeoDataFrame:
    """Index rows of the chips that the epoch, threshold and temperature of a model were chosen on."""
    splits = model.facts.trained_on
    if model.evaluated_on:
        same = model.evaluated_on == model.facts.chips  # other chips have other folds, or none
        splits += (ChipSplit(model.evaluated_on, model.facts.fold if same else None),)
    return _rows(splits, "validation")


def _rows(splits: Iterable[ChipSplit], name: str) -> gpd.GeoDataFrame:
    """The index rows of `train` or `validation` in all of these splits.

    Training chips of a fold that touch the fold held out are not among them.
    """
    rows = []
    for split in splits:
        try:
            rows.append(open_chips(split.chips, fold=split.fold).select(name))
        except (InputError, *SERVER_ERRORS) as error:
            raise InputError(
                f"the chips of run {split.chips}, on which the model was trained or validated, cannot be read: {error}"
            ) from error
    return pd.concat(rows, ignore_index=True)


def log_dataset(chips: ChipSet, split: str, model: Model | None = None) -> Dataset:
    """Log the chips of a split as data of the active run, named after their places, and the model that sees them."""
    rows = chips.select(split)
    places = " ".join(sorted(set(rows.place)))
    return run_artifacts.log_input(
        rows.drop(columns="geometry"),
        f"chips {places} {split}",
        source=hrefs.absolute(chips.rules["catalog"]),
        digest=chip_set.digest(rows),
        context={"train": "training"}.get(split, split),
        models=[model.key] if model else [],
    )
