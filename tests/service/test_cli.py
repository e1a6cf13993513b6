"""The command line against a real API; what needs training is tests/system's."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from service.cli import main

Call = Callable[..., Result]
CSV = "size,colour,price\n1,red,10\n2,blue,20\n3,red,31\n4,blue,39\n5,red,52\n6,blue,60\n"
SPEC = "dataset: prices\ntarget: price\ntraining: {epochs: 3}\n"


@pytest.fixture
def call(api: Any, monkeypatch: pytest.MonkeyPatch) -> Call:
    """Run a command against the API."""
    monkeypatch.setenv("FALLLINE_URL", str(api.client.base_url))
    return lambda *arguments: CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def prices(tmp_path: Path) -> Path:
    path = tmp_path / "prices.csv"
    path.write_text(CSV)
    return path


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(SPEC)
    return path


def test_datasets_are_uploaded_listed_shown_and_deleted(call: Call, prices: Path) -> None:
    assert "6 rows, 3 columns" in call("datasets", "upload", prices, "--name", "gone").output
    assert "gone" in call("datasets", "list").output
    shown = call("datasets", "show", "gone")
    assert shown.exit_code == 0
    assert "colour  text" in shown.output
    assert call("datasets", "delete", "gone").exit_code == 0
    assert call("datasets", "show", "gone").exit_code == 1


def test_column_types_are_corrected(call: Call, prices: Path) -> None:
    found = json.loads(call("datasets", "upload", prices, "--columns", '{"size": "text"}', "--json").output)
    assert {column["name"]: column["type"] for column in found["columns"]}["size"] == "text"
    assert call("datasets", "upload", prices, "--columns", "{").exit_code == 2


def test_a_broken_file_is_told_with_its_line(call: Call, tmp_path: Path) -> None:
    broken = tmp_path / "broken.csv"
    broken.write_text("a,b\n1,2\n1,2,3\n")
    done = call("datasets", "upload", broken)
    assert done.exit_code == 1
    assert "line 3" in done.output


def test_a_job_is_submitted_shown_and_cancelled(call: Call, prices: Path, spec: Path) -> None:
    job = json.loads(call("train", spec, "--data", prices, "--json").output)
    assert job["status"] == "queued"
    assert job["id"] in call("jobs", "list", "--status", "queued").output
    assert job["id"] in call("jobs", "show", job["id"]).output
    assert "is paused; `fallline jobs resume" in call("jobs", "pause", job["id"]).output
    assert json.loads(call("jobs", "pause", job["id"], "--json").output)["status"] == "paused"
    assert "is queued" in call("jobs", "resume", job["id"]).output
    assert json.loads(call("jobs", "resume", job["id"], "--json").output)["status"] == "queued"
    assert "goes on with 3 workers" in call("jobs", "scale", job["id"], "3").output
    assert json.loads(call("jobs", "cancel", job["id"], "--json").output)["status"] == "cancelled"
    watched = call("jobs", "watch", job["id"])
    assert watched.exit_code == 1, "a job that did not succeed"
    assert "cancelled" in watched.output


def test_a_wrong_spec_names_the_field(call: Call, prices: Path, spec: Path) -> None:
    call("datasets", "upload", prices)
    spec.write_text(SPEC + "optimizer: {learning_rate: -1}\n")
    done = call("train", spec)
    assert done.exit_code == 1
    assert "optimizer.learning_rate" in done.output


def test_with_json_errors_are_json(call: Call) -> None:
    done = call("jobs", "show", "job_none", "--json")
    assert done.exit_code == 1
    assert json.loads(done.stderr)["error"]["code"] == "not_found"


@pytest.mark.parametrize("group", ["datasets", "jobs", "models"])
def test_every_list_is_json_when_asked(call: Call, group: str) -> None:
    assert json.loads(call(group, "list", "--json").output)["object"] == "list"


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["jobs", "show"], ["train", "/no/such/file"], ["jobs", "scale", "x"]]
)
def test_wrong_usage_is_exit_code_2(call: Call, arguments: list[str]) -> None:
    assert call(*arguments).exit_code == 2


def test_later_commands_say_so(call: Call) -> None:
    assert "not supported yet" in call("replay", "job_1").output


def test_a_spec_to_start_from_is_a_good_one(call: Call, tmp_path: Path) -> None:
    path = tmp_path / "new.yaml"
    assert call("init", path).exit_code == 0
    assert call("init", path).exit_code == 1, "it is not overwritten"
    done = call("train", path)
    assert "there is no dataset 'digits'" in done.output


def test_without_a_service_it_says_how_to_start_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FALLLINE_URL", "http://127.0.0.1:1")
    done = CliRunner().invoke(main, ["jobs", "list"])
    assert done.exit_code == 1
    assert "fallline serve" in done.output


def test_the_doctor_names_every_check(call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FALLLINE_HOME", str(tmp_path))
    found = json.loads(call("doctor", "--json").output)
    assert [finding["check"] for finding in found][:4] == ["Python", "settings", "SQLite", "home"]
    assert {finding["check"]: finding["ok"] for finding in found}["disk reserve"]
    monkeypatch.setenv("FALLLINE_DISK_RESERVE_MB", "999999999")
    assert "less than the reserve of 999,999,999.0 MB" in call("doctor").output
    assert not found[-1]["ok"], "Ray and MLflow are not up"
    monkeypatch.setenv("FALLLINE_PROT", "1")
    misspelt = call("doctor")
    assert misspelt.exit_code == 1
    assert "FALLLINE_PROT" in misspelt.output
