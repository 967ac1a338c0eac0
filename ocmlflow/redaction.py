"""Removes passwords, tokens and signatures of addresses from text, before it is logged or sent to a server."""

import os
import re

SECRETS = (
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "DATABRICKS_TOKEN",
)
"""Environment variables whose values must never be shown."""


def redact(text: str) -> str:
    """The text without the values of SECRETS, and with addresses cut to what is public.

    An address loses its user and password, and its query (from `?` on), which holds the signature.
    """
    for value in (os.environ.get(name) for name in SECRETS):
        if value and len(value) >= 8:  # a shorter value may be a word of the text
            text = text.replace(value, "***")
    return _ADDRESS.sub(r"\1\2", text)


_ADDRESS = re.compile(
    r"(://)"  # of any scheme: those of databases have passwords too
    # Passwords that are not quoted may hold @, / and ?, ports may not. A text may hold several addresses.
    r"(?:[^\s/@:\[\"']*:(?!\d{2,5}(?:[/?\s,\"']|$))(?:(?!://)\S)*@|[^\s/,]*@)?"
    r"((?:(?!://)[^\s?])*)(?:\?(?!workflowType=|runs=%5B)\S*)?"  # queries of MLflow's own page
)
