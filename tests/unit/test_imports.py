"""Who may know whom, seen at run time: what a fresh interpreter has loaded after importing a room.

The import contracts in pyproject.toml read the source; they do not see what a third-party package
pulls in, nor an import made by name. These tests do.
"""

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = {path.parent.name for path in ROOT.glob("[a-z]*/__init__.py")}
# What stands in `baton` beside the packages and modules that every process may know.
ROOMS = {"bench", "cli", "cluster", "engine", "planner", "worker"}
SHARED = sorted(
    f"baton.{path.stem}"
    for path in (ROOT / "baton").iterdir()
    if path.stem not in ROOMS and not path.stem.startswith("_")
)

# Run with the names of packages or modules, a dash, then the modules that shall seem not installed.
IMPORT_ALL = """
import importlib, pkgutil, sys

dash = sys.argv.index("-")
wanted, blocked = sys.argv[1:dash], sys.argv[dash + 1 :]

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if any(name == top or name.startswith(top + ".") for top in blocked):
            raise ModuleNotFoundError(f"{wanted} must do without {name}", name=name)

sys.meta_path.insert(0, Blocker())

def fail(name):
    raise  # walk_packages would swallow it

for name in wanted:
    root = importlib.import_module(name)
    for module in pkgutil.walk_packages(getattr(root, "__path__", ()), name + ".", onerror=fail):
        if not module.name.endswith(".__main__"):
            importlib.import_module(module.name)
print(*sys.modules)
"""


def modules_after_importing(*wanted: str, blocked: tuple[str, ...] = ()) -> set[str]:
    """Import every module of `wanted` and below them in a new interpreter; what is loaded then."""
    command = [sys.executable, "-c", IMPORT_ALL, *wanted, "-", *blocked]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        pytest.fail(result.stderr, pytrace=False)
    return set(result.stdout.split())


@pytest.mark.parametrize("wanted", [SHARED, ["router"]], ids=["baton", "router"])
def test_front_door_loads_no_torch(wanted: list[str]) -> None:
    loaded = modules_after_importing(*wanted)
    assert loaded >= set(wanted)
    assert loaded & {"torch", "ray"} == set()


@pytest.mark.parametrize("package", ["baton.engine", "kv_transfer"])
def test_engine_and_transfer_run_without_network_libraries(package: str) -> None:
    blocked = ("grpc", "google.protobuf", "ray", "redis", "opentelemetry")
    loaded = modules_after_importing(package, blocked=blocked)
    assert package in loaded
    assert loaded & set(blocked) == set()


def test_every_package_and_room_is_under_contract() -> None:
    config = PYPROJECT["tool"]["importlinter"]
    layers = " ".join(config["contracts"][0]["layers"]).replace("|", " ").replace(":", " ").split()
    assert set(config["root_packages"]) == PACKAGES
    assert set(layers) >= (PACKAGES - {"baton"}) | {f"baton.{room}" for room in ROOMS}
    assert set(config["contracts"][1]["source_modules"]) == set(SHARED)


def test_every_package_is_installed() -> None:
    include = PYPROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
    assert {pattern.removesuffix("*") for pattern in include} == PACKAGES
