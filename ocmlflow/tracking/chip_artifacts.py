"""Sets of chips, as runs keep them: of which run, where they lie, and which of them a model has seen."""

import errno
import hashlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import geopandas as gpd
import mlflow
import pandas as pd
from mlflow.data.pandas_dataset import from_pandas
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.runs_artifact_repo import RunsArtifactRepository

from ocmlflow.chips import chip_set
from ocmlflow.chips.chip_set import ChipSet
from ocmlflow.chips.zarr_store import Folder
from ocmlflow.errors import InputError
from ocmlflow.storage import hrefs, range_cache
from ocmlflow.storage.range_cache import RangeCache
from ocmlflow.tracking import run_search, runs
from ocmlflow.tracking.model_facts import ChipSplit
from ocmlflow.tracking.outbox_sender import AWAY
from ocmlflow.tracking.registry import Model

DIGEST = "ocmlflow.chips.digest"
"""Tag of a run: the digest of the chips that it made or used."""
CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "ocmlflow"
LIST, LAST = "files.json", "chips.json"
"""Among the chips of a run: a list of files with bytes and hashes, sent first; and the file that is sent last."""
SENDERS = 2
"""Files that are sent at the same time."""


def resolve_run(chips: str | None) -> str:
    """Run id of the chips named by a run id or a `runs:/` address, or of the newest finished `prepare` run."""
    if chips is None:
        found = run_search.newest("prepare")
        if found is None:
            raise InputError(
                "this experiment has no finished `prepare` run: make chips first, with "
                "`mlflow run . -e prepare -P catalog=HREF`, or name such a run of another one with chips=RUN_ID"
            )
        return str(found.info.run_id)
    run_id = chips.removeprefix("runs:/").split("/")[0]
    try:
        found = mlflow.get_run(run_id)
    except MlflowException as error:
        raise InputError(f"chips={chips} names no run of {mlflow.get_tracking_uri()}") from error
    if found.data.tags.get(runs.VERB) != "prepare" or found.info.status != "FINISHED":
        verb = found.data.tags.get(runs.VERB, "foreign")
        raise InputError(
            f"chips={chips}: a finished `prepare` run is needed, that one is a {found.info.status} `{verb}` run"
        )
    return run_id


def digest(run_id: str) -> str:
    """The digest of the chips of a `prepare` run."""
    return str(mlflow.get_run(run_id).data.tags[DIGEST])


def folder(run_id: str) -> Folder:
    """The folder with the chips of a `prepare` run, or what stands for it where it is far away.

    Of s3:// addresses parts are read when first needed, through MLflow's server and from elsewhere whole files; both
    are kept in the user's cache. InputError, naming the file, where something cannot be read.
    """
    address = _address(run_id)
    if urlparse(address).scheme in ("", "file"):
        return hrefs.local_path(address)
    cache = RangeCache(CACHE / "chips", range_cache.size_limit(CACHE / "chips"))
    with _told(f"the chips of run {run_id} cannot be listed"):
        sizes = _sizes(address)
        key = f"{run_id}-{hrefs.digest(repr(_list_of(address, sizes)))[:8]}"  # other chips are not taken for these
    if address.startswith("s3://"):
        fetch = range_cache.open_ranges(address, sizes, cache, key)
    else:
        fetch = range_cache.open_whole_files(address, sizes, cache, key, partial(_download, address))

    def read(name: str, first: int, count: int | None) -> bytes:
        with _told(f"cannot read {name} of the chips of run {run_id}"):
            return fetch(name, first, count)

    return read


def open_chips(run_id: str, *, fold: int | None = None) -> ChipSet:
    """The chips of a `prepare` run, with that fold held out if one is given; pixels are read when they are needed."""
    return replace(chip_set.load(folder(run_id), fold=fold), run=run_id)


def send(source: Path, run_id: str) -> tuple[int, int]:
    """Send the chips in a local folder to a run, but for files that lie there already; how many were sent, and bytes.

    A file is there if it has the size, and the list that was sent before all others the hash, of the one here.
    InputError where some cannot be sent: called again, it goes on.
    """
    address, names = _address(run_id), hrefs.list_recursive(str(source))
    repository = get_artifact_repository(address)
    files = {name: {"bytes": size, "sha256": _sha256(source / name)} for name, size in names.items()}
    with _told(f"the chips cannot be sent to run {run_id}; started again, `prepare` goes on where it was"):
        there = _sizes(address)
        known = _list_of(address, there)
        same = {name for name in names if there.get(name) == names[name] and known.get(name) == files[name]}
        for name in there.keys() - same - {LIST}:  # before the list says otherwise of them
            repository.delete_artifacts(name)
        with tempfile.TemporaryDirectory() as scratch:
            (Path(scratch) / LIST).write_text(json.dumps(files, indent=1, sort_keys=True))
            repository.log_artifact(f"{scratch}/{LIST}")
        missing = sorted(names.keys() - same, key=lambda name: (name == LAST, name))
        with ThreadPoolExecutor(SENDERS) as executor:
            for _ in executor.map(partial(_send_one, repository, source), missing[:-1]):
                pass
        for name in missing[-1:]:
            _send_one(repository, source, name)
    return len(missing), sum(names[name] for name in missing)


def is_complete(run_id: str) -> bool:
    """Whether all files of the chips of a run lie where its artifacts are kept, as large as they were sent."""
    address = _address(run_id)
    with _told(f"the chips of run {run_id} cannot be listed"):
        there = _sizes(address)
        known = _list_of(address, there)
    return LAST in known and all(there.get(name) == file["bytes"] for name, file in known.items())


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Have what MLflow and S3 raise in the block become an InputError that says this first."""
    try:
        yield
    except AWAY as error:
        raise InputError(f"{what}: {error}") from error


def _address(run_id: str) -> str:
    return str(RunsArtifactRepository.get_underlying_uri(f"runs:/{run_id}/chips"))


def _sizes(address: str) -> dict[str, int]:
    """Names and bytes of the files at an address, in folders too."""
    if address.startswith("s3://"):
        return hrefs.list_recursive(address)
    repository, found, folders = get_artifact_repository(address), {}, [""]
    while folders:
        for entry in repository.list_artifacts(folders.pop() or None):
            if entry.is_dir:
                folders.append(entry.path)
            else:
                found[entry.path] = int(entry.file_size or 0)
    return found


def _list_of(address: str, there: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """The list of files, their bytes and hashes, that was sent to an address; empty if there is none."""
    if LIST not in there:
        return {}
    with tempfile.TemporaryDirectory() as scratch:
        _download(address, LIST, Path(scratch) / LIST)
        return dict(json.loads((Path(scratch) / LIST).read_text()))


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


def _send_one(repository: ArtifactRepository, source: Path, name: str) -> None:
    repository.log_artifact(str(source / name), str(Path(name).parent) if "/" in name else None)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def trained_on(model: Model) -> gpd.GeoDataFrame:
    """The index rows of all chips that a model, and the models it started from, were trained on."""
    return _rows(model.facts.trained_on, "train")


def chosen_on(model: Model) -> gpd.GeoDataFrame:
    """The index rows of all validation chips: those that epochs were chosen on, and threshold and temperature."""
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
            rows.append(chip_set.load(folder(split.chips), fold=split.fold).select(name))
        except (InputError, *AWAY) as error:
            raise InputError(
                f"the chips of run {split.chips}, that the model knows, cannot be read: {error}"
            ) from error
    return pd.concat(rows, ignore_index=True)


def log_dataset(index: Any, *, source: str, digest: str) -> None:
    """Name the chips (rows of an index) as what the active run trains on."""
    rows = index.drop(columns="geometry")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # on whole numbers, which are whole here, and on kinds of source
        dataset = from_pandas(rows, source=hrefs.absolute(source), name="chips", digest=digest)
        mlflow.log_input(dataset, context="training")
