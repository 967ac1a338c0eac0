"""Removes passwords and signatures from texts that people or servers see."""

import os
import re

SECRETS = (
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "DATABRICKS_TOKEN",
)
"""Environment variables whose values are shown nowhere."""


def redact(text: str) -> str:
    """The text without secrets: user, password and signature (behind the `?`) of addresses, and those of SECRETS."""
    for value in (os.environ.get(name) for name in SECRETS):
        if value and len(value) >= 8:  # shorter ones are words
            text = text.replace(value, "***")
    return _ADDRESS.sub(r"\1\2", text)


_ADDRESS = re.compile(
    r"(://)"  # of any scheme: databases too carry passwords
    # Unquoted passwords hold @, / and ?, ports do not; several addresses may stand side by side.
    r"(?:[^\s/@:\[\"']*:(?!\d{2,5}(?:[/?\s,\"']|$))(?:(?!://)\S)*@|[^\s/,]*@)?"
    r"((?:(?!://)[^\s?])*)(?:\?\S*)?"
)
