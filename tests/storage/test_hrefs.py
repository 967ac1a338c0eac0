import os
import ssl
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
import numpy as np
import pytest
from botocore.exceptions import ClientError
from conftest import noise, pixels, write_image
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from ocmlflow import redaction
from ocmlflow.storage import hrefs
from ocmlflow.storage import s3 as s3_store
from ocmlflow.storage.s3 import ServerUnavailableError


@pytest.fixture(params=["local", "s3"])
def base(request, tmp_path) -> str:
    """A place to put files: a folder, or an address on the S3 server."""
    return str(tmp_path / "out") if request.param == "local" else request.getfixturevalue("s3")


def put(folder, href: str, content: bytes) -> None:
    source = folder / "source"
    source.write_bytes(content)
    hrefs.put(source, href)
    assert not source.exists()


def test_what_was_put_is_read_and_deleted(base, tmp_path):
    href = hrefs.join(base, "maps", "one.tif")
    put(tmp_path, href, b"first")
    put(tmp_path, href, b"second")
    assert hrefs.read(href) == b"second"
    hrefs.delete(href)
    with pytest.raises(FileNotFoundError, match=r"one\.tif"):
        hrefs.read(href)


def test_a_fingerprint_changes_with_the_content(base, tmp_path):
    href = hrefs.join(base, "scene.tif")
    put(tmp_path, href, b"first")
    before = hrefs.fingerprint(href)
    assert hrefs.fingerprint(href) == before
    put(tmp_path, href, b"other")
    assert hrefs.fingerprint(href) != before
    with pytest.raises(FileNotFoundError, match="nowhere"):
        hrefs.fingerprint(hrefs.join(base, "nowhere"))


def test_a_folder_that_can_be_written_is_left_empty(base):
    hrefs.check_writable(base)
    with pytest.raises(FileNotFoundError):
        hrefs.read(hrefs.join(base, ".ocmlflow-probe"))


def test_a_bucket_that_is_not_there_is_refused(s3):
    with pytest.raises(OSError, match="s3://nosuchbucket/out"):
        hrefs.check_writable("s3://nosuchbucket/out")
    with pytest.raises(FileNotFoundError, match="s3://nosuchbucket/x: the S3 server answers"):
        hrefs.read("s3://nosuchbucket/x")


def test_a_mirror_passes_over_what_goes_while_it_works_and_over_nothing_else(s3, tmp_path, monkeypatch):
    for name in ("a", "b", "c"):
        put(tmp_path, f"{s3}/{name}", name.encode())
    download = s3_store.download

    def meanwhile(href: str, target: Path) -> None:
        if href.endswith("a"):
            hrefs.delete(f"{s3}/b")
        download(href, target)

    monkeypatch.setattr(s3_store, "download", meanwhile)
    assert hrefs.mirror(s3, str(tmp_path / "copy")) == 2
    assert hrefs.list_recursive(str(tmp_path / "copy")) == {"a": 1, "c": 1}
    listed = hrefs.list_recursive(s3)
    monkeypatch.setattr(hrefs, "list_recursive", lambda _: listed)
    monkeypatch.setattr(s3_store, "download", download)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(OSError, match=f"{s3}/a: the S3 server answers 403"):
        hrefs.mirror(s3, str(tmp_path / "other"))
    with pytest.raises(OSError, match=rf"{s3}/x/a: .*SignatureDoesNotMatch"):
        hrefs.mirror(str(tmp_path / "copy"), f"{s3}/x")


@pytest.mark.parametrize("folder", ["/proc/out", "https://example.org/out", "file"])
def test_what_is_no_folder_to_write_to_is_refused(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=f"cannot write to {folder}"):
        hrefs.check_writable(folder)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_folder_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OSError, match="cannot write"):
        hrefs.check_writable(str(tmp_path))


def test_no_server_and_wrong_credentials_are_named(s3, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(OSError, match="s3://data/x: the S3 server answers"):
        hrefs.read("s3://data/x")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    with pytest.raises(OSError, match=r"s3://data/x: .*127\.0\.0\.1:9"):
        hrefs.read("s3://data/x")
    with pytest.raises(OSError, match="s3://data/x"):
        hrefs.check_writable("s3://data/x")


def test_web_addresses_are_read_under_a_name_of_our_own(web):
    folder, address, _ = web
    (folder / "a.json").write_text("{}")
    assert hrefs.read(f"{address}/a.json") == b"{}"
    before = hrefs.fingerprint(f"{address}/a.json")
    (folder / "a.json").write_text("[]")
    assert hrefs.fingerprint(f"{address}/a.json") != before
    with pytest.raises(FileNotFoundError, match=r"b\.json answers 404"):
        hrefs.read(f"{address}/b.json")
    with pytest.raises(FileNotFoundError, match=r"no answer from http://127\.0\.0\.1:9/a"):
        hrefs.read("http://127.0.0.1:9/a")


def test_a_reader_sees_the_old_file_or_the_new_one(tmp_path):
    target, contents = tmp_path / "target", {bytes([n]) * 500_000 for n in range(2)}
    put(tmp_path, str(target), next(iter(contents)))
    seen, done = set(), threading.Event()

    def look():
        while not done.is_set():
            seen.add(target.read_bytes())

    reader = threading.Thread(target=look)
    reader.start()
    for content in list(contents) * 10:
        put(tmp_path, str(target), content)
    done.set()
    reader.join()
    assert seen <= contents


def test_several_may_put_the_same_file_at_once(tmp_path):
    def writer(number: int) -> None:
        for _ in range(200):
            put(tmp_path / str(number), str(tmp_path / "target"), bytes([number]) * 1000)

    for number in range(4):
        (tmp_path / str(number)).mkdir()
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(writer, range(4)))
    assert (tmp_path / "target").read_bytes() in [bytes([number]) * 1000 for number in range(4)]
    assert {path.name for path in tmp_path.iterdir()} == {"target", "0", "1", "2", "3"}


@pytest.mark.parametrize(
    ("href", "remote"),
    [
        ("s3://b/k", True),
        ("https://a/b", True),
        ("http://a", True),
        ("/a/b", False),
        ("a", False),
        ("file:///a", False),
    ],
)
def test_addresses_are_told_from_paths(href, remote, tmp_path):
    assert hrefs.is_remote(href) == remote
    assert hrefs.join(href, "c").endswith("/c")
    assert hrefs.absolute(href) == href if remote else hrefs.absolute(href).startswith("/")


def test_what_is_absolute_is_named_as_before(tmp_path, monkeypatch):
    (tmp_path / "annexed").touch()
    (tmp_path / "scene.tif").symlink_to("annexed")
    monkeypatch.chdir(tmp_path)
    assert hrefs.absolute("scene.tif") == str(tmp_path / "scene.tif")


def test_digests_tell_texts_apart():
    assert len(hrefs.digest("a")) == 32
    assert hrefs.digest("ab", "c") != hrefs.digest("a", "bc")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cannot read https://h/a.tif?X-Sig=s3cr3t: 403", "cannot read https://h/a.tif 403"),
        ("s3://key:s3cr3t@bucket/a.tif", "s3://bucket/a.tif"),
        ("a/b?c", "a/b?c"),
        ("postgresql+psycopg2://me:s3cr3t@db.org:5432/m cannot", "postgresql+psycopg2://db.org:5432/m cannot"),
        ("postgresql://db.org/m?user=me&password=s3cr3t", "postgresql://db.org/m"),
        ("HTTPS://me:s3@cr3t@h/x", "HTTPS://h/x"),
        ("https://me:s3/cr3t@h", "https://h"),
        ("https://me:s3?cr/3t@h/x", "https://h/x"),
        ("redis://:s3cr3t@h:1", "redis://h:1"),
        ("https://token@h/x", "https://h/x"),
        ("http://h:5000/a@b http://[::1]:5000/a@b", "http://h:5000/a@b http://[::1]:5000/a@b"),
        ('{"a":"http://h","b":"models:/m@champion"}', '{"a":"http://h","b":"models:/m@champion"}'),
        ("s3://a/b.tif,https://me:s3cr3t@h/x", "s3://a/b.tif,https://h/x"),
        ("https://h:8080/a.tif,https://token@h2/b.tif?s", "https://h:8080/a.tif,https://h2/b.tif"),
        ("https://me:s3@cr3t@h/x,https://h2:80/y", "https://h/x,https://h2:80/y"),
        ("postgresql://me:7/s3cr3t@db.org/m", "postgresql://db.org/m"),
        ("a=http://h:5000,b=models:/m@champion", "a=http://h:5000,b=models:/m@champion"),
        ("s3://bucket/a@b.tif and file:///home/me@h/x", "s3://bucket/a@b.tif and file:///home/me@h/x"),
    ],
)
def test_secrets_of_addresses_are_not_shown(text, shown):
    assert redaction.redact(text) == shown


def test_what_is_passing_is_asked_again(web):
    folder, address, answers = web
    (folder / "a.json").write_text("{}")
    answers["/a.json"] = [503, 429]
    assert hrefs.read(f"{address}/a.json") == b"{}"
    assert not answers["/a.json"]


@pytest.mark.parametrize(("status", "asked"), [(403, 1), (404, 1), (503, 5)])
def test_what_is_not_passing_is_told_with_the_answer(web, status, asked, monkeypatch):
    monkeypatch.setattr("urllib3.util.retry.Retry.DEFAULT_BACKOFF_MAX", 0.01)
    folder, address, answers = web
    (folder / "a.json").write_text("{}")
    answers["/a.json"] = [status] * 9
    hrefs._session.cache_clear()
    with pytest.raises(FileNotFoundError, match=rf"a\.json answers {status}"):
        hrefs.read(f"{address}/a.json")
    hrefs._session.cache_clear()
    assert 9 - len(answers["/a.json"]) == asked


def test_public_data_is_read_unsigned_by_whoever_has_credentials(s3, monkeypatch):
    assert s3_store.boto_session()[1] is False
    monkeypatch.setenv("AWS_NO_SIGN_REQUEST", "YES")
    assert s3_store.boto_session()[1] is True
    with pytest.raises(FileNotFoundError, match="AccessDenied"):  # the test's bucket is not public
        hrefs.read(f"{s3}/a.txt")


def test_the_files_of_a_folder_are_listed_and_those_below_are_not(base, tmp_path):
    for name in ("b.tif", "a.tif", "below/c.tif"):
        put(tmp_path, hrefs.join(base, *name.split("/")), b"x")
    assert hrefs.list_files(base) == [hrefs.join(base, "a.tif"), hrefs.join(base, "b.tif")]
    assert hrefs.size(hrefs.join(base, "a.tif")) == 1


def test_a_profile_is_enough_for_boto3_mlflow_and_gdal(s3, tmp_path, monkeypatch):
    image = noise(40, 50)
    hrefs.put(Path(write_image(tmp_path / "a.tif", image)), f"{s3}/a.tif")
    known = {name: os.environ[f"AWS_{name}"] for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "ENDPOINT_URL_S3")}
    (tmp_path / "config").write_text(
        f"[profile team]\nregion = us-east-1\nendpoint_url = {known['ENDPOINT_URL_S3']}\n"
        f"aws_access_key_id = {known['ACCESS_KEY_ID']}\naws_secret_access_key = {known['SECRET_ACCESS_KEY']}\n"
    )
    for name in (*known, "DEFAULT_REGION"):
        monkeypatch.delenv(f"AWS_{name}")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "team")
    boto3.setup_default_session()
    try:
        assert s3_store.custom_endpoint() == known["ENDPOINT_URL_S3"]
        assert hrefs.size(f"{s3}/a.tif") > 1000
        np.testing.assert_array_equal(pixels(f"{s3}/a.tif").image, image)
        assert [file.path for file in get_artifact_repository(s3).list_artifacts()] == ["a.tif"]
    finally:
        monkeypatch.undo()
        boto3.setup_default_session()


def test_mlflows_setting_of_the_address_is_understood(s3, monkeypatch):
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", os.environ["AWS_ENDPOINT_URL_S3"])
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3")
    assert s3_store.custom_endpoint() == os.environ["MLFLOW_S3_ENDPOINT_URL"]
    assert hrefs.list_files(s3) == []
    monkeypatch.delenv("MLFLOW_S3_ENDPOINT_URL")
    assert s3_store.custom_endpoint() is None


@pytest.mark.parametrize(
    ("region", "host"),
    [
        ("us-east-1", "s3.amazonaws.com"),  # which is this region's
        *((r, f"s3.{r}.amazonaws.com") for r in ("eu-west-1", "us-west-2", "eu-central-1", "af-south-1", "ap-east-1")),
        ("cn-north-1", "s3.cn-north-1.amazonaws.com.cn"),
    ],
)
def test_parts_are_asked_for_in_the_region_of_their_bucket(region, host, monkeypatch):
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3")
    # In place of Amazon, which says so with a refusal too.
    known = {"ResponseMetadata": {"HTTPHeaders": {"x-amz-bucket-region": region}}}
    asked = s3_store.client()
    monkeypatch.setattr(asked, "head_bucket", lambda **_: raise_refused(known))
    signed = s3_store._signed_address(s3_store._signing_client(asked, region), f"s3://{region}/a b", 0)
    assert signed.startswith(f"https://{region}.{host}/a%20b?X-Amz-Algorithm=AWS4-HMAC-SHA256&")
    assert f"%2F{region}%2Fs3%2Faws4_request" in signed
    monkeypatch.setenv("AWS_NO_SIGN_REQUEST", "YES")
    asked = s3_store.client()
    monkeypatch.setattr(asked, "head_bucket", lambda **_: raise_refused(known))
    assert (
        s3_store._signed_address(s3_store._signing_client(asked, region), f"s3://{region}/a", 0)
        == f"https://{region}.{host}/a"
    )


def raise_refused(answer):
    raise ClientError({"Error": {"Code": "403"}, **answer}, "HeadBucket")


def test_parts_of_another_server_are_asked_for_at_its_own_address(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "https://s3.your.org")
    signed = s3_store._signed_address(s3_store._signing_client(s3_store.client(), "data"), "s3://data/a", 0)
    assert signed.startswith("https://s3.your.org/data/a?X-Amz-Algorithm=AWS4-HMAC-SHA256&")
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3")
    own = "https://bucket.vpce-1a.s3.eu-west-1.vpce.amazonaws.com"  # of Amazon's, in a network without another way
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", own)
    assert s3_store._signed_address(s3_store._signing_client(s3_store.client(), "data"), "s3://data/a", 0).startswith(
        f"{own}/data/a?"
    )
    assert s3_store.custom_endpoint() == own


def test_an_error_does_not_show_what_an_address_is_signed_with():
    with pytest.raises(ServerUnavailableError) as raised:
        s3_store.read_range("s3://data/a", 0, 9)
    shown = "".join(traceback.format_exception(raised.value))
    assert "s3://data/a: no answer from 127.0.0.1:9: " in shown
    assert "Signature" not in shown


def test_ranges_come_through_a_proxy(s3, tmp_path, monkeypatch):
    """SeaweedFS takes whole addresses in its requests too, as a proxy does."""
    put(tmp_path, f"{s3}/a", bytes(range(100)))
    monkeypatch.setenv("http_proxy", os.environ["AWS_ENDPOINT_URL_S3"])
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://s3.invalid")
    assert s3_store.read_range(f"{s3}/a", 10, 19) == bytes(range(10, 20))


class OneRange(BaseHTTPRequestHandler):
    """Answers any request with ten bytes."""

    def do_GET(self):
        self.send_response(206)
        self.send_header("Content-Length", "10")
        self.end_headers()
        self.wfile.write(b"0123456789")

    def log_message(self, *_):
        pass


@pytest.fixture
def certificate(tmp_path):
    """A self-signed certificate of localhost, and its key in the same file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(datetime(2020, 1, 1)).not_valid_after(datetime(2120, 1, 1))
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    content = key.private_bytes(*form) + builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    (tmp_path / "localhost.pem").write_bytes(content)
    return tmp_path / "localhost.pem"


def test_ranges_come_from_a_server_with_a_certificate_of_its_own(certificate, monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), OneRange)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"https://localhost:{server.server_port}")
        with pytest.raises(FileNotFoundError, match=r"s3://data/a: .*CERTIFICATE_VERIFY_FAILED") as raised:
            s3_store.read_range("s3://data/a", 0, 9)
        assert not isinstance(raised.value, ServerUnavailableError)  # which would be asked again for minutes
        monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
        assert s3_store.read_range("s3://data/a", 0, 9) == b"0123456789"
    finally:
        server.shutdown()
        server.server_close()


def test_secrets_of_the_environment_are_not_shown(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "open-sesame")
    assert redaction.redact("refused: open-sesame") == "refused: ***"
