"""The documentation is held against the code: what exists is in it, and what it links to exists."""

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from pydantic import BaseModel
from ruamel.yaml import YAML

from service.app import create_app
from service.cli import main
from service.fields import Section
from service.resolve import Limits, resolve
from service.routes.unsupported import ROUTES
from service.schemas import JobSpec
from service.schemas_network import GraphNode, Layer
from service.settings import SETTINGS, Settings

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
DOCUMENTS = [*ROOT.glob("*.md"), *DOCS.rglob("*.md"), ROOT / "deploy" / "README.md"]


def commands(command: click.Command, path: str = "fallline") -> Iterator[tuple[str, click.Command]]:
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            yield from commands(child, f"{path} {name}")
    else:
        yield path, command


@pytest.mark.parametrize(("path", "command"), list(commands(main)), ids=lambda value: str(value))
def test_every_command_and_option_stands_in_the_docs(path: str, command: click.Command) -> None:
    text = (DOCS / "cli.md").read_text()
    assert f"`{path}" in text
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert f"`{parameter.opts[0]}" in text, f"{path}: {parameter.opts[0]}"


def test_commands_of_later_parts_are_named() -> None:
    text = (DOCS / "cli.md").read_text()
    for name in ("models rollback", "models export", "replay", "verify", "keys"):
        assert f"`{name}`" in text


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_every_setting_stands_in_the_docs(setting: object) -> None:
    line = f"| `{setting.name}` | {f'`{setting.default}`' if setting.default else ''} | {setting.meaning} |"  # type: ignore[attr-defined]
    assert line in (DOCS / "settings.md").read_text()


def test_no_setting_stands_in_the_docs_that_does_not_exist() -> None:
    known = {setting.name for setting in SETTINGS}
    for document in [ROOT / "README.md", ROOT / "deploy" / "README.md", *DOCS.rglob("*.md")]:
        found = set(re.findall(r"FALLLINE_[A-Z_]*[A-Z]", document.read_text()))
        assert found <= known, document


def test_every_route_stands_in_the_docs(tmp_path: Path) -> None:
    text = (DOCS / "api.md").read_text()
    app = create_app(Settings.from_environment({"FALLLINE_HOME": str(tmp_path)}))
    routes = [
        (method.upper(), path) for path, methods in app.openapi()["paths"].items() for method in methods if path != "/"
    ]
    assert len(routes) > 15
    for method, path in [*routes, *ROUTES]:
        assert f"`{method} {path}`" in text


def test_every_test_that_shows_a_promise_exists() -> None:
    named = re.findall(r"`(\w+/test_\w+\.py)(?:::(test_\w+))?`", (DOCS / "reliability.md").read_text())
    assert len(named) > 30
    for path, name in named:
        assert f"def {name}" in (ROOT / "tests" / path).read_text(), f"{path}::{name}"


def fields(model: type[BaseModel], path: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        kind = field.annotation
        section = next((k for k in (kind, *getattr(kind, "__args__", ())) if _is_section(k)), None)
        if section is not None and name not in ("features", "early_stopping"):
            yield from fields(section, f"{path}{name}.")
        else:
            yield f"{path}{name}"


def _is_section(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, Section)


def test_every_spec_field_stands_in_the_docs() -> None:
    text = (DOCS / "spec.md").read_text()
    found = list(fields(JobSpec))
    assert "optimizer.learning_rate" in found
    for path in found:
        assert f"`{path}`" in text, path


@pytest.mark.parametrize("model", [Layer, GraphNode])
def test_every_field_of_a_layer_stands_in_the_docs(model: type[Section]) -> None:
    text = (DOCS / "spec.md").read_text().split("Fields of")
    table = text[2 if model is GraphNode else 1]
    for name in model.model_fields:
        assert f"`{name}`" in table, name


def test_every_example_of_a_spec_is_one() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", (DOCS / "spec.md").read_text(), re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        spec = {"dataset": "digits", "target": "label"} | YAML(typ="safe", pure=True).load(block)
        columns = [{"name": "x", "type": "number", "distinct": 9, "missing": 0}]
        columns += [{"name": "label", "type": "integer", "distinct": 3, "missing": 0, "values": [0, 1, 2]}]
        dataset = {"id": "ds_1", "name": "digits", "rows": 500, "columns": columns}
        found = resolve(JobSpec.model_validate(spec), dataset, Limits(10**8, 16))
        assert found.plan["layers"]


def test_every_direct_dependency_has_its_reason() -> None:
    text = (DOCS / "dependencies.md").read_text()
    for line in (ROOT / "requirements.in").read_text().splitlines():
        if line and not line.startswith("#"):
            assert f"| {line.split('[')[0]} |" in text


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text()):
        if not target.startswith("http"):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"
