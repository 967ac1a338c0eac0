import pytest

from ocmlflow import redaction


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


def test_secrets_of_the_environment_are_not_shown(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "open-sesame")
    assert redaction.redact("refused: open-sesame") == "refused: ***"
