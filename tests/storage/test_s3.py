import os
import ssl
import threading
import traceback
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

from ocmlflow.storage import hrefs
from ocmlflow.storage import s3 as s3_store
from ocmlflow.storage.s3 import ServerUnavailableError


def put(folder, href: str, content: bytes) -> None:
    source = folder / "source"
    source.write_bytes(content)
    hrefs.put(source, href)
    assert not source.exists()


def test_a_bucket_that_is_not_there_is_refused(s3):
    with pytest.raises(OSError, match="s3://nosuchbucket/out"):
        hrefs.check_writable("s3://nosuchbucket/out")
    with pytest.raises(FileNotFoundError, match="s3://nosuchbucket/x: the S3 server answers"):
        hrefs.read("s3://nosuchbucket/x")


def test_no_server_and_wrong_credentials_are_named(s3, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(OSError, match="s3://data/x: the S3 server answers"):
        hrefs.read("s3://data/x")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    with pytest.raises(OSError, match=r"s3://data/x: .*127\.0\.0\.1:9"):
        hrefs.read("s3://data/x")
    with pytest.raises(OSError, match="s3://data/x"):
        hrefs.check_writable("s3://data/x")


def test_requests_go_unsigned_on_request_despite_credentials(s3, monkeypatch):
    assert s3_store.boto_session()[1] is False
    monkeypatch.setenv("AWS_NO_SIGN_REQUEST", "YES")
    assert s3_store.boto_session()[1] is True
    with pytest.raises(FileNotFoundError, match="AccessDenied"):  # the test's bucket is not public
        hrefs.read(f"{s3}/a.txt")


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


def test_mlflow_s3_endpoint_url_is_used(s3, monkeypatch):
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
def test_addresses_are_signed_for_the_region_of_the_bucket(region, host, monkeypatch):
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


def test_addresses_are_signed_for_a_custom_endpoint(monkeypatch):
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


def test_an_error_does_not_show_the_signature_of_an_address():
    with pytest.raises(ServerUnavailableError) as raised:
        s3_store.read_range("s3://data/a", 0, 9)
    shown = "".join(traceback.format_exception(raised.value))
    assert "s3://data/a: no answer from 127.0.0.1:9: " in shown
    assert "Signature" not in shown


def test_ranges_are_read_through_a_proxy(s3, tmp_path, monkeypatch):
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


def test_ranges_are_read_with_a_custom_certificate(certificate, monkeypatch):
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
