"""The package is a line of folders: imports point backwards only, and each library enters where it belongs."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from ocmlflow.__main__ import VERBS

ROOT = Path(__file__).parents[1]
ORDER = {
    "": ["errors", "redaction", "progress", "probability", "pictures", "executors"],
    "sample": ["layout", "render", "catalog"],
    "storage": ["s3", "https", "hrefs", "json_files", "range_cache"],
    "scenes": [
        "geobox",
        "windows",
        "gdal_settings",
        "sidecars",
        "gdal_messages",
        "image_file",
        "bands",
        "georeference",
        "stretching",
        "no_imagery",
        "block_damage",
        "reading_rules",
        "raster",
        "headers",
        "vrt",
        "asset_roles",
        "file_names",
        "folders",
        "stac_api",
        "stac_reader",
        "item_pairing",
        "catalog",
        "label_pairing",
        "geotiff",
        "resample",
        "partial_read",
        "overview_check",
        "collars",
        "inspection",
        "stac_writer",
        "model_item",
    ],
    "chips": [
        "labels",
        "targets",
        "wkb",
        "geojson",
        "label_filter",
        "label_formats",
        "label_files",
        "label_table",
        "footprints",
        "scene_survey",
        "zarr_store",
        "ground_blocks",
        "splits",
        "chip_set",
        "drawn_buildings",
        "block_cutting",
        "cutting",
        "label_shift",
        "summary",
        "figures",
    ],
    "training": [
        "dataset",
        "tensorflow_ops",
        "augment",
        "keras_file",
        "pretrained",
        "encoders",
        "decoders",
        "networks",
        "losses",
        "train_step",
        "optimizer",
        "callbacks",
        "fit",
        "previews",
    ],
    "prediction": [
        "inference",
        "array_prediction",
        "engine",
        "separation",
        "tile_store",
        "scene_tiles",
        "preflight",
        "block_join",
        "polygonize",
        "instances",
        "outlines",
        "simplification",
        "squaring",
        "ground_outlines",
        "vector_files",
        "map_writer",
        "building_writer",
        "instance_raster",
        "scene_map",
        "output",
        "submission",
    ],
    "evaluation": [
        "metrics",
        "calibration",
        "object_matching",
        "building_matching",
        "external_masks",
        "external_polygons",
        "predictions",
        "predicted_buildings",
        "scores",
        "scorecard",
        "examples",
        "report",
    ],
    "tracking": [
        "provenance",
        "limits",
        "model_facts",
        "model_evaluation",
        "outbox",
        "outbox_sender",
        "database_wait",
        "page_addresses",
        "runs",
        "run_pages",
        "project_runs",
        "child_runs",
        "run_artifacts",
        "run_search",
        "registry",
        "chip_artifacts",
        "server_check",
    ],
    "server": ["postgresql", "processes", "settings", "team_server"],
    "launch": ["docker_image", "remote_runs", "kubernetes_template", "kubernetes_job", "databricks_job", "launcher"],
    "pipeline": [
        "option_values",
        "option_fields",
        "prepare_options",
        "train_options",
        "model_options",
        "workflow_options",
        "tool_options",
        "options",
        "work_folder",
        "chip_plan",
        "scene_log",
        "prepare",
        "model_card",
        "scoring",
        "training_setup",
        "train",
        "score_log",
        "promotion",
        "evaluate",
        "compare",
        "prediction_setup",
        "predict",
        "steps",
        "protocol",
        "main",
        "api",
        "diagnostics",
    ],
    "cli": [
        "arguments",
        "console",
        "prepare",
        "train",
        "evaluate",
        "compare",
        "protocol",
        "predict",
        "main",
        "doctor",
        "server",
        "launch",
        "send",
    ],
}
"""Folders, and the modules of each, in the order in which data passes; a module imports from those before it."""
ENTERS = {
    "boto3": {"storage"},
    "botocore": {"storage"},
    "databricks": {"launch"},
    "distributed": {"executors"},
    "geopandas": {"scenes", "chips", "training", "prediction", "evaluation", "tracking", "pipeline"},
    "jax": set(),
    "keras": {"training", "prediction", "tracking", "pipeline"},
    "kubernetes": {"launch"},
    "mlflow": {"tracking", "launch"},
    "openvino": {"prediction"},
    "pystac": {"scenes"},
    "rasterio": {"scenes", "sample", "chips", "prediction", "evaluation"},
    "shapely": {"scenes", "sample", "chips", "prediction", "evaluation", "pipeline"},
    "tensorflow": {"training"},
    "torch": set(),
}
"""Folders, or modules that stand alone, that a library may be imported in."""
MODULES = [".".join(filter(None, (folder, name))) for folder, names in ORDER.items() for name in names]


def imports(name: str) -> set[str]:
    """Dotted names that a module imports, inside its functions too."""
    found = set()
    for node in ast.walk(ast.parse(path(name).read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports by a relative name"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def imported_at_the_top(file: Path) -> set[str]:
    """Names of the packages that a file imports when it is itself imported."""
    nodes: list[ast.AST] = [ast.parse(file.read_text())]
    found = set()
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(str(node.module).partition(".")[0])
        elif not isinstance(node, ast.FunctionDef):
            nodes += ast.iter_child_nodes(node)
    return found


def path(name: str) -> Path:
    return ROOT / "ocmlflow" / f"{name.replace('.', '/')}.py"


def test_every_module_has_its_place():
    files = [file.relative_to(ROOT / "ocmlflow").with_suffix("") for file in ROOT.glob("ocmlflow/**/*.py")]
    assert sorted(MODULES) == sorted(".".join(file.parts) for file in files if not file.name.startswith("__"))


@pytest.mark.parametrize("folder", [folder for folder in ORDER if folder])
def test_every_folder_has_a_face(folder):
    assert ast.get_docstring(ast.parse((ROOT / "ocmlflow" / folder / "__init__.py").read_text()))


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_from_those_before_it(name):
    before = set(MODULES[: MODULES.index(name)])
    for dotted in imports(name):
        assert not dotted.startswith("entrypoints")
        if dotted.startswith("ocmlflow."):
            module = dotted.removeprefix("ocmlflow.")
            known = module if module in MODULES else module.rpartition(".")[0]
            assert known in before or module == "__version__"


@pytest.mark.parametrize("name", MODULES)
def test_a_library_enters_where_it_belongs(name):
    place = name.partition(".")[0]
    for library in {dotted.partition(".")[0] for dotted in imports(name)} & ENTERS.keys():
        assert place in ENTERS[library], f"{name} imports {library}"


@pytest.mark.parametrize("name", MODULES)
def test_a_module_is_short(name):
    assert len(path(name).read_text().splitlines()) <= 300


@pytest.mark.parametrize("file", [*ROOT.glob("ocmlflow/**/*.py")], ids=lambda file: str(file.relative_to(ROOT)))
def test_a_module_can_be_imported_on_windows_and_macos(file):
    assert not imported_at_the_top(file) & {"fcntl", "grp", "pwd", "resource", "termios"}


def test_what_is_imported_is_declared():
    """By the distribution that brings it, with an extra where it is not always needed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    declared = {re.split(r"[\[<>=!~; ]", line)[0].lower().replace("_", "-") for lines in groups for line in lines}
    imported = {dotted.partition(".")[0] for name in MODULES for dotted in imports(name)}
    distributions = packages_distributions()
    for package in imported - sys.stdlib_module_names - {"ocmlflow"}:
        brought_by = {name.lower().replace("_", "-") for name in distributions[package]}
        assert brought_by & declared, (
            f"{package} comes with {', '.join(brought_by)}, which pyproject.toml does not declare"
        )


def test_entry_points_are_a_few_lines():
    assert {file.stem for file in ROOT.glob("entrypoints/[a-z]*.py")} == set(VERBS)
    for file in ROOT.glob("entrypoints/*.py"):
        assert len(file.read_text().splitlines()) <= 15


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("command", ["entrypoints.{}", "ocmlflow {}"])
def test_help_takes_less_than_a_second_of_cpu(command, verb):
    before = os.times()
    command = [sys.executable, "-m", *command.format(verb).split(), "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    after = os.times()
    assert done.stdout.startswith(f"usage: ocmlflow {verb}")
    assert after.children_user + after.children_system - before.children_user - before.children_system < 1
