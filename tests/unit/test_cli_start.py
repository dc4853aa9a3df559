"""What `baton up`, `router` and `worker` refuse before anything is started, and how they say so."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from baton import native
from baton.cli.main import main
from baton.config import load
from baton.errors import ConfigError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    return tmp_path


def run(*arguments: str, **environment: str) -> Result:
    return CliRunner().invoke(main, list(arguments), env=environment)


@pytest.mark.parametrize("command", ["up", "worker"])
def test_a_missing_model_is_named_as_the_option(command: str) -> None:
    result = run(command)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == "error: --model: is required"


@pytest.mark.parametrize("command", ["up", "worker"])
@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.write_text(""), "is a file"),
        (lambda path: path.mkdir(), "config.json is missing"),
        (lambda path: (path.mkdir(), (path / "config.json").write_text("{}")), "safetensors"),
    ],
    ids=["missing", "file", "empty", "weightless"],
)
def test_a_folder_that_holds_no_model_is_seen_before_anything_starts(
    tmp_path: Path, command: str, make: object, problem: str
) -> None:
    assert callable(make)
    make(tmp_path / "model")
    result = run(command, "--model", str(tmp_path / "model"))
    assert result.exit_code == 1
    assert problem in result.stderr
    assert "Ray" not in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["up", "--grpc-port", "99999"],
        ["router", "--http-port", "-1"],
        ["worker", "--port", "65536"],
        ["router", "--log-level", "loud"],
        ["worker", "--log-level", "7"],
    ],
)
def test_what_no_option_can_be_is_wrong_usage(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert f"Invalid value for '{arguments[1]}'" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["up", "--grpc-port", "65535", "--routers", "2"], "--grpc-port: must be from 0 to 65535"),
        (["up", "--address", "ray://head:10001"], "--address: "),
        (["router", "--processes", "0"], "--processes: must be at least 1"),
        (["router", "--grpc-port", "7000", "--http-port", "7000"], "--http-port: is 7000"),
        (["router", "--processes", "9", "--process-port", "65530"], "--process-port: must be"),
        (["worker", "--cores", "0,x"], "--cores: must be numbers"),
        (["worker", "--cores", "99999"], "--cores: cannot be used"),
        (["worker", "--cores", "-1"], "--cores: cannot be used"),
    ],
)
def test_errors_name_the_option(folder: Path, arguments: list[str], said: str) -> None:
    if arguments[0] != "router":
        arguments = [*arguments, "--model", str(folder)]
    result = run(*arguments)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith(f"error: {said}")


def test_what_a_variable_says_is_not_blamed_on_an_option() -> None:
    result = run("router", BATON_ROUTER_PROCESSES="0")
    assert result.stderr.splitlines()[-1] == "error: processes: must be at least 1"
    result = run("router", BATON_ROUTER_GRPC_PORT="many")
    assert "error: environment: BATON_ROUTER_GRPC_PORT: must be" in result.stderr


@dataclass(frozen=True)
class Housed:
    folder: Path


def test_nobody_needs_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a user whom the container does not know."""

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.setattr(Path, "expanduser", lambda self: homeless())
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert native._cache_folder().is_absolute()
    with pytest.raises(ConfigError, match="BATON_X_FOLDER: ~/m cannot be found"):
        load(Housed, toml=None, section="x", env={"BATON_X_FOLDER": "~/m"})
