"""Scenes of a few dozen pixels, catalogues of them in the challenge's layout, and an S3 server on this machine."""

import contextlib
import gc
import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
import warnings
from argparse import Namespace
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote

import boto3
import botocore.exceptions
import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import rasterio
import shapely
from affine import Affine
from containers import base_image, docker_engine, mlflow_server, project_image, registry  # noqa: F401
from hypothesis import settings
from pyproj import Transformer
from rasterio.errors import NotGeoreferencedWarning

from ocmlflow.chips import chip_set, cutting, scene_survey, splits, targets
from ocmlflow.chips.chip_set import ChipSet, Rules
from ocmlflow.cli import arguments
from ocmlflow.pipeline.options import STEPS, Options
from ocmlflow.scenes import catalog, raster, resample
from ocmlflow.scenes.catalog import Scene
from ocmlflow.scenes.geobox import GeoBox
from ocmlflow.scenes.raster import Pixels
from ocmlflow.storage import hrefs

CRS = "EPSG:32630"
GSD = 0.1
# The corner lies on whole multiples of GSD: the ground grid of such a scene is its own grid.
TRANSFORM = Affine(GSD, 0, 500_000, 0, -GSD, 620_000)
ELSEWHERE = Affine(GSD, 0, 501_000, 0, -GSD, 620_000)
NODATA = 7
DATA = Path(__file__).parents[2] / "shared" / "data"

# Shells start what runs in the background deaf to Ctrl-C, which processes hand on: tests send it to theirs.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A loaded machine is slow, and that is no mistake.
settings.register_profile("tests", deadline=None, max_examples=25)
settings.load_profile("tests")

needs_data = pytest.mark.skipif(not DATA.exists(), reason="the real scenes are not on this machine")


SLOW = (
    "chips/test_cutting",
    "launch/test_databricks_job",
    "launch/test_kubernetes_job",
    "launch/test_launcher",
    "pipeline/test_api",
    "pipeline/test_compare",
    "pipeline/test_git_address",
    "pipeline/test_main",
    "pipeline/test_moved_models",
    "pipeline/test_predict",
    "pipeline/test_prepare",
    "pipeline/test_protocol",
    "pipeline/test_search",
    "pipeline/test_train",
    "evaluation/test_building_matching",
    "evaluation/test_predicted_buildings",
    "prediction/test_engine",
    "prediction/test_ground_outlines",
    "prediction/test_scene_map",
    "prediction/test_vector_files",
    "sample/test_sample",
    "server/test_rights",
    "storage/test_range_cache",
    "test_executors",
    "test_layout",
    "test_project",
    "test_wheel",
    "tracking/test_database_wait",
    "tracking/test_limits",
    "tracking/test_outbox_sender",
    "tracking/test_registry",
    "training/test_fit",
    "training/test_keras_backends",
    "training/test_networks",
)
"""Files of tests that train, run whole steps, or start many processes."""


def pytest_collection_modifyitems(items):
    """Put each test in one lane: docker, servers, slow or fast. Files of lanes that take long come first."""
    for item in items:
        fixtures = set(item.fixturenames)
        if "docker_engine" in fixtures:
            item.add_marker(pytest.mark.docker)
        elif {"_s3_server", "team_servers"} & fixtures:
            item.add_marker(pytest.mark.servers)
        elif item.nodeid.removeprefix("tests/").partition(".py")[0] in SLOW:
            item.add_marker(pytest.mark.slow)
        else:
            item.add_marker(pytest.mark.fast)
    # Two processes share the files: a long file that came last would keep one of them waiting.
    long_files = {item.path for item in items if item.get_closest_marker("docker") or item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in long_files)


@pytest.fixture(scope="module")
def _garbage():
    """What libraries leave unclosed in a module that puts up with their warnings is collected, and told, there."""
    yield
    gc.collect()


@pytest.fixture(params=["alpha", "nodata", "mask"])
def how(request) -> str:
    """The three ways in which an image says what is not imagery."""
    return request.param


@pytest.fixture(autouse=True)
def _no_credentials(monkeypatch, tmp_path_factory):
    """A test that forgets the S3 server must fail, not reach for somebody's account or leave traces in his home."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.getbasetemp() / "state"))
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "MLFLOW_S3_ENDPOINT_URL", "AWS_S3_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, "/dev/null")
    nobody = {"ACCESS_KEY_ID": "nobody", "SECRET_ACCESS_KEY": "nothing", "DEFAULT_REGION": "us-east-1"}
    nobody |= {"EC2_METADATA_DISABLED": "true", "ENDPOINT_URL_S3": "http://127.0.0.1:9", "MAX_ATTEMPTS": "1"}
    for name, value in nobody.items():
        monkeypatch.setenv(f"AWS_{name}", value)


def noise(height: int, width: int, *, seed: int = 0) -> np.ndarray:
    """(height, width, 3) uint8 of dark ground; never the nodata value."""
    return np.random.default_rng(seed).integers(20, 90, (height, width, 3), np.uint8)


def hole(height: int, width: int) -> np.ndarray:
    """(height, width) bool: valid but in a corner and in a hole in the middle."""
    valid = np.ones((height, width), bool)
    valid[: height // 3, : width // 3] = False
    valid[height // 2 : height // 2 + 3, width // 2 : width // 2 + 5] = False
    return valid


def write_image(
    path: Path,
    image: np.ndarray,
    valid: np.ndarray | None = None,
    *,
    how: str = "alpha",
    crs: str | None = CRS,
    transform: Affine = TRANSFORM,
) -> str:
    """Write a GeoTIFF, without a georeference where `crs` is None; returns its href."""
    height, width, bands = image.shape
    valid = np.ones((height, width), bool) if valid is None else valid
    profile = {"driver": "GTiff", "height": height, "width": width, "count": bands, "dtype": image.dtype}
    profile |= {"crs": crs, "transform": transform} if crs else {}
    if how == "alpha":
        alpha = np.where(valid, np.iinfo(image.dtype).max, 0).astype(image.dtype)
        image = np.concatenate([image, alpha[..., np.newaxis]], axis=-1)
        profile |= {"count": bands + 1, "photometric": "RGB" if bands == 3 else "MINISBLACK", "alpha": "YES"}
    elif how == "nodata":
        image = np.where(valid[..., np.newaxis], image, NODATA).astype(image.dtype)
        profile["nodata"] = NODATA
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings(), rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path, "w", **profile) as file:
            file.write(np.moveaxis(image, -1, 0))
            if how == "mask":
                file.write_mask(valid)
    return str(path)


def building(top: int, left: int, bottom: int, right: int, transform: Affine = TRANSFORM) -> shapely.Polygon:
    """The outline, on the ground, of a rectangle of pixels."""
    (x0, y0), (x1, y1) = transform @ (left, top), transform @ (right, bottom)
    return shapely.box(x0, y1, x1, y0)


def write_labels(path: Path, footprints: list, *, crs: str = CRS) -> str:
    """Write footprints as the challenge does: GeoJSON in degrees; returns the href."""
    path.parent.mkdir(parents=True, exist_ok=True)
    degrees = gpd.GeoSeries(footprints, crs=crs).to_crs("EPSG:4326") if footprints else []
    features = [
        {
            "type": "Feature",
            "properties": {"building": "yes"},
            "geometry": None if g is None else shapely.geometry.mapping(g),
        }
        for g in degrees
    ]
    named = {"type": "name", "properties": {"name": "urn:ogc:def:crs:OGC:1.3:CRS84"}}
    path.write_text(json.dumps({"type": "FeatureCollection", "crs": named, "features": features}))
    return str(path)


def write_catalog(folder: Path, scenes: dict[str, list | None]) -> str:
    """Write the JSON of a STAC 0.8.1 catalogue and its labels; `scenes` maps `place/id` to footprints or None.

    Images are the caller's: `place/id/id.tif`. Returns the href of `catalog.json`.
    """
    places: dict[str, list[str]] = {}
    for number, (name, footprints) in enumerate(scenes.items()):
        place, scene = name.split("/")
        items = places.setdefault(place, [])
        items.append(_write_item(folder, place, scene, "image", f"{scene}.tif", number))
        if footprints is not None:
            items.append(_write_item(folder, place, f"{scene}-labels", "labels", f"{scene}.geojson", number))
            write_labels(folder / place / f"{scene}-labels" / f"{scene}.geojson", footprints)
    extent = {"spatial": {"bbox": [[0, 0, 1, 1]]}, "temporal": {"interval": [["2019-10-29T00:00:00Z", None]]}}
    for place, items in places.items():
        collection = {"id": place, "stac_version": "0.8.1", "description": place, "license": "various"}
        links = [_link("item", href) for href in items] + [_link("root", "../catalog.json")]
        write_json(folder / place / "collection.json", collection | {"extent": extent, "links": links})
    links = [_link("child", f"./{place}/collection.json") for place in places] + [_link("root", "./catalog.json")]
    top = {"id": "train", "stac_version": "0.8.1", "description": "Training data", "links": links}
    return write_json(folder / "catalog.json", top)


def upload(folder: Path, base: str) -> None:
    """Copy the files below a folder to an s3 address."""
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        copy = folder / "copy"
        shutil.copy(path, copy)
        hrefs.put(copy, hrefs.join(base, path.relative_to(folder).as_posix()))


def write_json(path: Path, content: object) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return str(path)


def _link(rel: str, href: str) -> dict[str, str]:
    return {"rel": rel, "href": href, "type": "application/json"}


def _write_item(folder: Path, place: str, name: str, key: str, file: str, number: int) -> str:
    media = "application/geo+json" if key == "labels" else "image/tiff; application=geotiff"
    item = {
        "type": "Feature",
        "stac_version": "0.8.1",
        "id": name,
        "properties": {"area": place, "datetime": "2017-09-19 00:00:00Z"},
        "geometry": shapely.geometry.mapping(shapely.box(number, 0, number + 1, 1)),
        "bbox": [number, 0, number + 1, 1],
        "links": [_link(rel, "../collection.json") for rel in ("collection", "parent")],
        "assets": {key: {"href": f"./{file}", "type": media}},
    }
    write_json(folder / place / name / f"{name}.json", item)
    return f"./{name}/{name}.json"


def pixels(href: str, target: GeoBox | None = None) -> Pixels:
    """All pixels of an image, on its own grid or on another."""
    with raster.open_scene(href, gsd=GSD) as (dataset, own):
        if target is None:
            return raster.read(dataset, rasterio.windows.Window(0, 0, own.width, own.height))
        with resample.warp_reader(dataset, own, target) as read:
            return read(rasterio.windows.Window(0, 0, target.width, target.height))


def bright(images: np.ndarray) -> np.ndarray:
    """A network that takes what is bright for building: (batch, height, width, 1) float32."""
    return images.mean(axis=-1, keepdims=True, dtype=np.float32) / 255


def brightness():
    """The same, to be sent to another process."""
    return bright


def distance_m(target: np.ndarray) -> np.ndarray:
    """The distance in targets to the edge of the pixel's own footprint, in metres up to `targets.CLIP_M`."""
    return (target & targets.STEPS) * (targets.CLIP_M / targets.STEPS)


def one_layer(weight: float, bias: float):
    """A keras.Model of one layer: bright is building, by one number."""
    import keras

    from ocmlflow.training import networks

    image = keras.Input((None, None, 3), dtype="uint8")
    layer = keras.layers.Conv2D(1, 1, name="logits")
    model = networks.with_probability(keras.Model(image, layer(keras.layers.Rescaling(1 / 255)(image))))
    layer.set_weights([np.full((1, 1, 3, 1), weight / 3, np.float32), np.array([bias], np.float32)])
    return model


@contextlib.contextmanager
def own_store(folder: Path, experiment: str) -> Iterator[Namespace]:
    """An MLflow store in a folder, to work in: that `folder`, and the id of its one `experiment`."""
    import mlflow

    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_EXPERIMENT_ID", "")  # set_experiment sets it: restored at the end
        made = mlflow.create_experiment(experiment, artifact_location=(folder / "artifacts").as_uri())
        mlflow.set_experiment(experiment)
        yield Namespace(folder=folder, experiment=made)
        mlflow.set_tracking_uri(before)


@contextlib.contextmanager
def room_for(size: int):
    """Files of this process become no larger: what is written beyond is refused, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def parsed(verb: str, words: list[str]) -> Options:
    """The options of a command, as its command line says them."""
    return arguments.parse(STEPS[verb], [str(word) for word in words], prog=verb)


def items(sequence, total):
    """Progress that shows nothing."""
    return sequence


def town(folder: Path, name: str, *, transform: Affine, height: int = 96, width: int = 160, seed: int = 0) -> list:
    """Write a dark image with white roofs and a corner without imagery; returns the roofs' footprints."""
    image, valid = noise(height, width, seed=seed), np.ones((height, width), bool)
    valid[:20, :20] = False
    corners = [(row, col) for row in range(10, height - 16, 24) for col in range(6, width - 16, 27)]
    for row, col in corners:
        image[row : row + 10, col : col + 14] = 230
    write_image(folder / name / f"{Path(name).name}.tif", image, valid, transform=transform)
    return [building(row, col, row + 10, col + 14, transform) for row, col in corners]


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> ChipSet:
    """Chips of 32 pixels of two places, `acc` in training and `kam` in validation. Read them, change nothing."""
    return two_towns(tmp_path_factory.mktemp("towns"), rules_with())


def two_towns(folder: Path, rules: Rules) -> ChipSet:
    """The chips of `made`, cut by other rules."""
    towns = {"acc/aaa": TRANSFORM, "kam/kkk": ELSEWHERE}
    footprints = {name: town(folder, name, transform=towns[name], seed=seed) for seed, name in enumerate(towns)}
    frames = [
        cut(scene, folder / "chips", rules=rules) for scene in catalog.read_scenes(write_catalog(folder, footprints))
    ]
    index = splits.assign(
        pd.concat(frames, ignore_index=True), validation="kam", test=None, folds=None, block_m=500, seed=0
    )
    index, _ = splits.drop_touching(index)
    kept = chip_set.rules_record(rules, catalog="towns", validation="kam", seed=0, empty_share=1.0)
    chip_set.save(folder / "chips", index, kept, [], {})
    return chip_set.load(folder / "chips")


def rules_with(**changes) -> Rules:
    """Rules for chips of 32 pixels."""
    plain = Rules(gsd=GSD, size=32, stride=32, min_valid=0.1, buffer_m=0.0)
    return replace(plain, **changes)


def wrong_zone(*, gsd: float = GSD, size: int = 40) -> Affine:
    """Transform of a square around Monrovia in EPSG:32636, far from its own zone, 29, as of two challenge scenes."""
    x, y = Transformer.from_crs("EPSG:4326", "EPSG:32636", always_xy=True).transform(-10.8, 6.3)
    return Affine(gsd, 0, x - gsd * size / 2, 0, -gsd, y + gsd * size / 2)


def cut(scene: Scene, folder: Path, *, rules: Rules, collar_m2: float = 0, **choice) -> gpd.GeoDataFrame:
    """Cut all of a scene; returns the rows of its chips. `choice` of labels and ground is that of the survey."""
    folder.mkdir(parents=True, exist_ok=True)
    found = scene_survey.survey(scene, gsd=rules.gsd, collar_m2=collar_m2, **choice)
    chosen = chip_set.candidates(found, rules=rules).assign(keep_empty=True)
    with ThreadPoolExecutor(1) as executor:
        ((_, rows),) = cutting.cut([found], chosen, folder, rules=rules, executor=executor, progress=items)
    if isinstance(rows, Exception):
        raise rows
    return rows


@pytest.fixture(scope="session")
def _s3_server(tmp_path_factory):
    """A SeaweedFS server, as its environment variables; https://github.com/seaweedfs/seaweedfs."""
    folder = tmp_path_factory.mktemp("s3")
    key = {"accessKey": "testkey", "secretKey": "testsecret"}
    # Rights in this bucket alone: whoever may do everything has missing buckets made for him.
    actions = [f"{right}:data" for right in ("Admin", "Read", "Write", "List", "Tagging")]
    config = write_json(folder / "s3.json", {"identities": [{"name": "t", "credentials": [key], "actions": actions}]})
    s3, master, volume, filer, admin = _free_ports(5)
    command = [Path(sys.executable).with_name("weed"), "mini", f"-dir={folder}", "-bucket=data", f"-s3.config={config}"]
    command += ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-s3.port={s3}", f"-master.port={master}"]
    command += [f"-volume.port={volume}", f"-filer.port={filer}", f"-admin.port={admin}", "-admin.ui=false"]
    command += ["-webdav=false", "-s3.iam=false", "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"]
    variables = {"AWS_ACCESS_KEY_ID": "testkey", "AWS_SECRET_ACCESS_KEY": "testsecret"}
    variables |= {"AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{s3}", "AWS_DEFAULT_REGION": "us-east-1"}
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, start_new_session=True)
    try:
        _wait_for_bucket(server, variables, folder / "log")
        yield variables
    finally:
        server.terminate()
        server.wait(60)


def _wait_for_bucket(server: subprocess.Popen, variables: dict[str, str], log: Path) -> None:
    client = boto3.Session(variables["AWS_ACCESS_KEY_ID"], variables["AWS_SECRET_ACCESS_KEY"]).client(
        "s3", endpoint_url=variables["AWS_ENDPOINT_URL_S3"], region_name=variables["AWS_DEFAULT_REGION"]
    )
    deadline = time.monotonic() + 90
    while True:
        try:
            client.head_bucket(Bucket="data")
            return
        except (botocore.exceptions.ClientError, botocore.exceptions.BotoCoreError):
            if server.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the S3 server does not answer: {log.read_text()[-2000:]}")
        try:
            server.wait(0.1)
        except subprocess.TimeoutExpired:
            continue


def _free_ports(count: int) -> list[int]:
    """Ports that are free, and the one 10,000 above as well, which SeaweedFS takes for itself."""
    found: list[int] = []
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        start = probe.getsockname()[1] % 30_000 + 20_000
    for port in range(start, 55_535):
        if len(found) < count and _is_free(port) and _is_free(port + 10_000):
            found.append(port)
    return found


def free_block(count: int) -> list[int]:
    """So many free ports in a row, below those that the system gives to connections: they are still free later."""
    while True:
        first = random.randrange(20_000, 22_700 - count)
        block = list(range(first, first + count))
        if all(_is_free(port) and _is_free(port + 10_000) for port in block):
            return block


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


@pytest.fixture
def s3(_s3_server, monkeypatch) -> str:
    """An address on a real S3 server, empty and this test's own, with the credentials for it set."""
    for name, value in _s3_server.items():
        monkeypatch.setenv(name, value)
    return f"s3://data/{uuid.uuid4().hex}"


@pytest.fixture
def web(tmp_path):
    """A folder, its http address, and answers (status codes by path) that come before that of the file.

    The server turns strangers away as data.source.coop does.
    """
    answers: dict[str, list[int]] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            file = tmp_path / unquote(self.path).lstrip("/")
            if not self.headers.get("User-Agent", "").startswith("ocmlflow"):
                return self.send_error(403)
            if answers.get(self.path):
                return self.send_error(answers[self.path].pop(0))
            if not file.is_file():
                return self.send_error(404)
            content = file.read_bytes()
            first, last = 0, len(content) - 1
            if span := self.headers.get("Range"):
                first, last = (int(n or last) for n in span.removeprefix("bytes=").split("-"))
            part = content[first : last + 1]
            self.send_response(206 if span else 200)
            self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(part)))
            self.send_header("ETag", f'"{hash(content)}"')
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(part)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield tmp_path, f"http://127.0.0.1:{server.server_port}", answers
        server.shutdown()


class Line:
    """A line to a server of this machine: `open`, `away`, `slow`, or `busy`, which answers 503.

    With `left`, it goes away when so many bytes have gone over it; `faults` counts what it was away or busy for.
    """

    def __init__(self, port: int) -> None:
        self.port, self.mode, self.faults = port, "open", 0
        self.left: int | None = None
        self.opens_at: int | None = None
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        self.connections: set[socket.socket] = set()
        Thread(target=self._accept, daemon=True).start()

    def become(self, mode: str, *, times: int | None = None) -> None:
        """Change, for connections that are open too; with `times`, it is open again after so many faults."""
        self.opens_at = None if times is None else self.faults + times
        self.mode = mode
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                Thread(target=self._serve, args=self.listener.accept()[:1], daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            mode = self.mode
            if mode in ("away", "busy"):
                self.faults += 1
                if self.faults == self.opens_at:
                    self.mode = "open"
                if mode == "busy":
                    client.recv(65536)
                    client.sendall(b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                return
            if mode == "slow":
                time.sleep(1)
            with socket.create_connection(("127.0.0.1", self.port)) as server:
                self.connections |= {client, server}
                back = Thread(target=self._copy, args=(server, client), daemon=True)
                back.start()
                self._copy(client, server)
                back.join()
                self.connections -= {client, server}

    def _copy(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while some := source.recv(65536):
                if self.left is not None:
                    self.left -= len(some)
                    if self.left < 0:
                        self.become("away")
                target.sendall(some)
            target.shutdown(socket.SHUT_WR)


@pytest.fixture
def line_to():
    """Makes a `Line` to a port."""
    lines: list[Line] = []

    def make(port: int) -> Line:
        lines.append(Line(port))
        return lines[-1]

    yield make
    for line in lines:
        line.become("away")
        line.listener.close()


@pytest.fixture(scope="session")
def team_servers():
    """The settings of two tracking servers as `ocmlflow server up` makes them: `sqlite`, `postgresql` where it is."""
    databases = ["sqlite", *(["postgresql"] if list(Path("/usr/lib/postgresql").glob("*/bin/initdb")) else [])]
    top = Path(tempfile.mkdtemp(prefix="ocmlflow-"))  # not pytest's folder, which the user postgres cannot reach
    top.chmod(0o755)
    # Whoever starts a server has settings of his own, for others.
    foreign = {"AWS_SESSION_TOKEN": "of-another-key", "AWS_NO_SIGN_REQUEST": "YES", "AWS_PROFILE": "nobody"}
    foreign |= {"MLFLOW_S3_ENDPOINT_URL": "http://127.0.0.1:9", "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    environment = os.environ | foreign | {"PGSSLMODE": "verify-full"}
    root = Path(__file__).parents[1]
    ports = free_block(16)

    def call(database: str, action: str, *words: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "entrypoints.server", action, "--folder", top / database, *words]
        return subprocess.Popen(command, cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    try:
        started = {}
        for database, first in zip(databases, ports[::8], strict=False):
            words = ["--s3_port", str(first), "--port", str(first + 5), "--database_port", str(first + 6)]
            words += ["--allowed_hosts", "mlflow.example.org,127.0.0.1:*"]
            started[database] = call(database, "up", *words, "--database", database, "--workers", "2")
        for process in started.values():
            said = process.communicate(timeout=300)[0].decode()
            assert process.returncode == 0, said
        yield {database: json.loads((top / database / "settings.json").read_text()) for database in databases}, top
    finally:
        for process in [call(database, "down") for database in databases]:
            process.communicate(timeout=120)
        assert not list(top.glob("*/*.pid"))
        shutil.rmtree(top)
