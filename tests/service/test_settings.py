"""Settings: read from the environment, every one of the table, and refused when they cannot be meant."""

import pickle
import re
from pathlib import Path

import pytest

import service.settings
from service.errors import SettingsError
from service.settings import SETTINGS, Settings

USED_ELSEWHERE = {"FALLLINE_URL"}  # the client's


def read(**values: str) -> Settings:
    return Settings.from_environment({f"FALLLINE_{name}": value for name, value in values.items()})


def test_the_defaults_are_those_of_the_table() -> None:
    found = read()
    assert (found.host, found.port, found.mlflow_port) == ("127.0.0.1", 8000, 5000)
    assert found.home == Path("~/.fallline").expanduser()
    assert found.database_url == f"sqlite:///{found.home}/fallline.db"
    assert found.artifacts == found.home / "artifacts"
    assert found.worker_slots >= 16
    assert (found.ray_address, found.mlflow_tracking_uri) == (None, None)


def test_every_setting_of_the_table_is_read_and_every_one_read_is_in_the_table() -> None:
    text = Path(service.settings.__file__).read_text().split("class Settings")[1]
    read_there = set(re.findall(r'"(FALLLINE_[A-Z_]+)"', text)) - {"FALLLINE_"}
    assert read_there | USED_ELSEWHERE == {setting.name for setting in SETTINGS}


def test_an_empty_value_is_as_good_as_none() -> None:
    assert Settings.from_environment({setting.name: "" for setting in SETTINGS}) == read()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PROT", "8000"),
        ("PORT", "http"),
        ("PORT", "65536"),
        ("PORT", "-1"),
        ("PORT", "²"),
        ("PORT", "9" * 5000),
        ("HOST", "0.0.0.0"),
        ("HOST", "192.168.1.4"),
        ("HOST", "example.org"),
        ("TRUSTED_NETWORK", "yes"),
        ("API_KEYS_REQUIRED", "true"),
        ("API_KEYS_REQUIRED", "perhaps"),
        ("WORKER_SLOTS", "0"),
        ("TRAINER_ORPHAN_SECONDS", "nan"),
        ("TRAINER_ORPHAN_SECONDS", "inf"),
        ("UPLOAD_WAIT_SECONDS", "-1"),
        ("LOG_LEVEL", "loud"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(SettingsError) as refusal:
        read(**{name: value})
    assert str(refusal.value).startswith(f"FALLLINE_{name}=")
    assert str(pickle.loads(pickle.dumps(refusal.value))) == str(refusal.value)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "127.0.0.1", "127.1.2.3", "::1"])
def test_loopback_by_any_name_is_a_host(host: str) -> None:
    assert read(HOST=host).host == host.lower()


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.4", "::"])
def test_another_address_needs_a_word_about_its_network(host: str) -> None:
    with pytest.raises(SettingsError, match="FALLLINE_TRUSTED_NETWORK=true"):
        read(HOST=host)
    assert read(HOST=host, TRUSTED_NETWORK="true").host == host
    with pytest.raises(SettingsError, match="expected an IP address"):
        read(HOST="example.org", TRUSTED_NETWORK="true")


def test_paths_are_absolute_and_the_home_is_its_owners_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = read(HOME="here", ARTIFACT_ROOT="there")
    assert (found.home, found.artifacts) == (tmp_path / "here", tmp_path / "there")
    found.make_folders()
    found.make_folders()
    assert found.home.stat().st_mode & 0o777 == 0o700
    for folder in (found.datasets, found.prepared, found.logs, found.mlflow, found.artifacts):
        assert folder.is_dir()


def test_names_and_addresses_are_brought_into_one_form() -> None:
    assert read(ALLOWED_HOSTS="Lab.example , ,b").allowed_hosts == ("lab.example", "b")
    assert read(MLFLOW_TRACKING_URI="http://mlflow:5000/").mlflow_url == "http://mlflow:5000"
    assert read(MLFLOW_PORT="5001").mlflow_url == "http://127.0.0.1:5001"
