import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ocmlflow.storage import hrefs, https
from ocmlflow.storage import s3 as s3_store


@pytest.fixture(params=["local", "s3"])
def base(request, tmp_path) -> str:
    """A place to put files: a folder, or an address on the S3 server."""
    return str(tmp_path / "out") if request.param == "local" else request.getfixturevalue("s3")


def put(folder, href: str, content: bytes) -> None:
    source = folder / "source"
    source.write_bytes(content)
    hrefs.put(source, href)
    assert not source.exists()


def test_a_file_is_put_read_and_deleted(base, tmp_path):
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


def test_a_mirror_skips_only_objects_that_vanish_meanwhile(s3, tmp_path, monkeypatch):
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
def test_an_output_that_is_not_a_writable_folder_is_refused(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=f"cannot write to {folder}"):
        hrefs.check_writable(folder)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_folder_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OSError, match="cannot write"):
        hrefs.check_writable(str(tmp_path))


def test_https_requests_have_their_own_user_agent(web):
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


def test_several_processes_may_put_the_same_file(tmp_path):
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
def test_remote_addresses_and_local_paths_are_distinguished(href, remote, tmp_path):
    assert hrefs.is_remote(href) == remote
    assert hrefs.join(href, "c").endswith("/c")
    assert hrefs.absolute(href) == href if remote else hrefs.absolute(href).startswith("/")


def test_an_absolute_href_keeps_the_name_of_a_link(tmp_path, monkeypatch):
    (tmp_path / "annexed").touch()
    (tmp_path / "scene.tif").symlink_to("annexed")
    monkeypatch.chdir(tmp_path)
    assert hrefs.absolute("scene.tif") == str(tmp_path / "scene.tif")


def test_digests_of_different_texts_differ():
    assert len(hrefs.digest("a")) == 32
    assert hrefs.digest("ab", "c") != hrefs.digest("a", "bc")


def test_transient_statuses_are_retried(web):
    folder, address, answers = web
    (folder / "a.json").write_text("{}")
    answers["/a.json"] = [503, 429]
    assert hrefs.read(f"{address}/a.json") == b"{}"
    assert not answers["/a.json"]


@pytest.mark.parametrize(("status", "asked"), [(403, 1), (404, 1), (503, 5)])
def test_other_statuses_are_errors_with_the_status(web, status, asked, monkeypatch):
    monkeypatch.setattr("urllib3.util.retry.Retry.DEFAULT_BACKOFF_MAX", 0.01)
    folder, address, answers = web
    (folder / "a.json").write_text("{}")
    answers["/a.json"] = [status] * 9
    https._session.cache_clear()
    with pytest.raises(FileNotFoundError, match=rf"a\.json answers {status}"):
        hrefs.read(f"{address}/a.json")
    https._session.cache_clear()
    assert 9 - len(answers["/a.json"]) == asked


def test_files_of_a_folder_are_listed_without_subfolders(base, tmp_path):
    for name in ("b.tif", "a.tif", "below/c.tif"):
        put(tmp_path, hrefs.join(base, *name.split("/")), b"x")
    assert hrefs.list_files(base) == [hrefs.join(base, "a.tif"), hrefs.join(base, "b.tif")]
    assert hrefs.size(hrefs.join(base, "a.tif")) == 1
