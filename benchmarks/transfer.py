"""How fast artifacts go to a server and back, beside boto3's own transfer of the same files to the same S3 server.

After `python -m entrypoints.server up`: `set -a; . .server/client.env; set +a; python -m benchmarks.transfer`.
"""

import argparse
import hashlib
import os
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import mlflow

from ocmlflow import storage

SHARD_MB = 50
"""About what a shard of 64 chips of 512 pixels takes."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=2000)
    megabytes = parser.parse_args().megabytes
    client, name = mlflow.MlflowClient(), f"transfer-{uuid.uuid4().hex[:8]}"
    with tempfile.TemporaryDirectory() as work:
        source = Path(work) / "source"
        source.mkdir()
        for n in range(max(1, megabytes // SHARD_MB)):
            (source / f"{n:04d}.bin").write_bytes(os.urandom(min(megabytes, SHARD_MB) * 1_000_000))
        print(f"{'':<10} {'up MB/s':>10} {'down MB/s':>10}")
        s3 = storage.s3_client()
        files = sorted(source.iterdir())

        def up() -> None:
            for file in files:
                s3.upload_file(str(file), "data", f"{name}/plain/{file.name}")

        def down(target: Path) -> None:
            for file in files:
                s3.download_file("data", f"{name}/plain/{file.name}", str(target / file.name))

        report("boto3", source, Path(work) / "boto3", up, down, megabytes)
        for way, place in (("direct", f"s3://data/{name}"), ("proxied", None)):
            experiment = client.create_experiment(f"{name}-{way}", artifact_location=place)
            run_id = client.create_run(experiment).info.run_id
            report(
                way,
                source,
                Path(work) / way,
                lambda run_id=run_id: client.log_artifacts(run_id, str(source), "chips"),  # type: ignore[misc]
                lambda target, run_id=run_id: mlflow.artifacts.download_artifacts(  # type: ignore[misc]
                    f"runs:/{run_id}/chips", dst_path=str(target)
                ),
                megabytes,
            )
            client.delete_experiment(experiment)


def report(
    name: str, source: Path, target: Path, up: Callable[[], object], down: Callable[[Path], object], megabytes: int
) -> None:
    """Time both ways, and fail unless every file came back as it was."""
    target.mkdir()
    began = time.perf_counter()
    up()
    middle = time.perf_counter()
    down(target)
    end = time.perf_counter()
    back = {file.name: digest(file) for file in target.rglob("*.bin")}
    assert back == {file.name: digest(file) for file in source.iterdir()}, f"{name}: files came back different"
    print(f"{name:<10} {megabytes / (middle - began):>10.0f} {megabytes / (end - middle):>10.0f}")


def digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


if __name__ == "__main__":
    main()
