"""The package is a line: a module imports from those above it, and each library enters where it belongs."""

import argparse
import ast
import importlib
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ORDER = [
    "errors",
    "workers",
    "outbox",
    "buckets",
    "storage",
    "remote",
    "postgresql",
    "services",
    "stac",
    "catalog",
    "filing",
    "grid",
    "georef",
    "raster",
    "resample",
    "salvage",
    "labels",
    "footprints",
    "survey",
    "town",
    "scenery",
    "sample",
    "store",
    "ground",
    "chips",
    "cutting",
    "alignment",
    "summary",
    "pictures",
    "dataset",
    "kernels",
    "augment",
    "weights",
    "models",
    "losses",
    "metrics",
    "learner",
    "callbacks",
    "training",
    "inference",
    "engine",
    "mosaic",
    "polygons",
    "objects",
    "masks",
    "vector",
    "windows",
    "maps",
    "submission",
    "results",
    "evaluation",
    "sheets",
    "scorecard",
    "report",
    "provenance",
    "delivery",
    "tracking",
    "registry",
    "chipsets",
    "probe",
    "elsewhere",
    "staging",
    "pods",
    "workspace",
]
AT_HOME = {
    "distributed": {"workers"},
    "boto3": {"buckets"},
    "botocore": {"buckets"},
    "pystac": {"stac", "filing"},
    "keras": {
        "dataset",
        "augment",
        "models",
        "kernels",
        "losses",
        "learner",
        "callbacks",
        "training",
        "engine",
        "sheets",
    },
    "mlflow": {"delivery", "tracking", "registry", "chipsets", "elsewhere", "probe"},
    "openvino": {"engine"},
    "kubernetes": {"pods"},
    "databricks": {"workspace"},
    "tensorflow": {"kernels"},
    "torch": set(),
    "jax": set(),
}
REQUIRED = {
    "server": ["status"],
    "prepare": ["--catalog", "c"],
    "compare": ["--models", "a,b"],
    "protocol": ["--name", "blocks", "--catalog", "c"],
    "predict": ["--images", "i", "--output", "o"],
    "launch": ["--step", "train", "--backend", "kubernetes"],
}
VERBS = sorted(path.stem for path in ROOT.glob("entrypoints/*.py") if path.stem != "__init__")


def imports(path: Path, *, top: bool = False) -> set[str]:
    """Dotted names that a module imports; with `top`, only when it is itself imported."""
    tree = ast.parse(path.read_text())
    found = set()
    for node in tree.body if top else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports by a relative name"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def module(name: str) -> Path:
    return ROOT / "ocmlflow" / f"{name}.py"


def test_every_module_has_its_place():
    assert sorted(ORDER) == sorted(path.stem for path in ROOT.glob("ocmlflow/*.py") if path.stem != "__init__")
    assert not imports(ROOT / "ocmlflow" / "__init__.py")


@pytest.mark.parametrize("name", ORDER)
def test_a_module_imports_from_those_above_it(name):
    used = {dotted.split(".")[1] for dotted in imports(module(name)) if dotted.startswith("ocmlflow.")}
    above = ORDER[: ORDER.index(name)]
    assert used & set(ORDER) <= set(above)
    assert not any(dotted.startswith("entrypoints") for dotted in imports(module(name)))


@pytest.mark.parametrize("name", ORDER)
def test_a_library_enters_where_it_belongs(name):
    for library in {dotted.split(".")[0] for dotted in imports(module(name))} & AT_HOME.keys():
        inside_a_function = name == "delivery" and library == "keras"
        assert name in AT_HOME[library] or inside_a_function
    assert name != "delivery" or not {dotted for dotted in imports(module(name), top=True) if "keras" in dotted}


@pytest.mark.parametrize("verb", VERBS)
def test_help_comes_at_once_and_shows_every_default(verb, monkeypatch):
    def cpu() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    before = cpu()
    command = [sys.executable, "-m", f"entrypoints.{verb}", "--help"]
    shown = " ".join(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split())
    assert cpu() - before < 1

    flags: list[argparse.Action] = []
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", lambda self, _: flags.extend(self._actions) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        importlib.import_module(f"entrypoints.{verb}").parse(REQUIRED.get(verb, []))
    for flag in flags[1:]:
        assert flag.required or re.search(rf"--{flag.dest} .*\(default: {re.escape(str(flag.default))}\)", shown)
        assert flag.help
