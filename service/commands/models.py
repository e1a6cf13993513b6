"""`models` and `predict`: what was trained, what is deployed, what it says."""

import csv
import json
from pathlib import Path
from typing import Any

import click

from service.client import FallLine
from service.commands.common import LaterGroup, api_command, page_options, print_json, print_page, print_table, when


@click.group(cls=LaterGroup, later=frozenset({"rollback", "export"}))
def models() -> None:
    """Registered models."""


@models.command("list")
@page_options
@api_command
def list_models(client: FallLine, as_json: bool, limit: int, after: str | None) -> None:
    """List models, newest first."""
    page = client.models.list(limit=limit, after=after)
    if as_json:
        print_json(page)
    else:
        print_page(
            page,
            ("name", "versions", "deployed", "created"),
            lambda m: (m["name"], len(m["versions"]), m["aliases"].get("production"), when(m["created_at"])),
            "no models",
        )


@models.command()
@click.argument("model")
@api_command
def show(client: FallLine, as_json: bool, model: str) -> None:
    """Show a model and its versions."""
    found = client.models.show(model)
    if as_json:
        print_json(found)
        return
    rows = [
        (
            v["version"],
            "production" if v["deployed"] else None,
            v["job_id"],
            v["weights_sha256"][:12],
            when(v["created_at"]),
        )
        for v in found["versions"]
    ]
    print_table(("version", "alias", "job", "weights", "created"), rows)


@models.command()
@click.argument("model")
@click.argument("version", type=click.IntRange(1))
@click.option("--force", is_flag=True, help="Even if its inputs or outputs differ from those of the deployed version.")
@api_command
def deploy(client: FallLine, as_json: bool, model: str, version: int, force: bool) -> None:
    """Serve VERSION of MODEL from now on."""
    found = client.models.deploy(model, version, force=force)
    if as_json:
        print_json(found)
    else:
        click.echo(f"version {version} of {model} is deployed")


@click.command()
@click.argument("model")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--version", type=click.IntRange(1), help="Default: the deployed one.")
@api_command
def predict(client: FallLine, as_json: bool, model: str, file: Path, version: int | None) -> None:
    """Predict every row of FILE: CSV with a header, or JSON (a list of rows)."""
    answer = client.predict(model, read_rows(file), version=version)
    if as_json:
        print_json(answer)
        return
    for prediction in answer["predictions"]:
        click.echo(_line(prediction))


def _line(prediction: dict[str, Any]) -> str:
    if "label" in prediction:
        chances = prediction["probabilities"].values()
        return f"{prediction['label']}\t{max(chances):.4f}"
    values = prediction["values"].values() if "values" in prediction else [prediction["value"]]
    return "\t".join(f"{value:g}" for value in values)


def read_rows(file: Path) -> list[Any]:
    """The rows of a JSON file, or of a CSV file as records: what reads as a number is one, what is empty is missing."""
    if file.suffix.lower() == ".json":
        try:
            rows = json.loads(file.read_text())
        except ValueError as error:
            raise click.ClickException(f"{file} is not JSON: {error}") from error
        rows = rows.get("instances") if isinstance(rows, dict) else rows
        if not isinstance(rows, list):
            raise click.ClickException(f'{file} holds no list of rows, nor {{"instances": [...]}}')
        return rows
    with file.open(newline="") as opened:
        return [{name: _cell(text) for name, text in row.items() if name} for row in csv.DictReader(opened)]


def _cell(text: str | None) -> Any:
    if text is None or text == "":
        return None
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
