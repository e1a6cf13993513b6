"""`datasets`: upload, list, show, delete."""

import json
from pathlib import Path

import click

from service.client import FallLine
from service.commands.common import api_command, page_options, print_fields, print_json, print_page, print_table, when


@click.group()
def datasets() -> None:
    """Uploaded tables."""


@datasets.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--name", help="The dataset's name. Default: the file's, without its ending.")
@click.option("--columns", help='Column types to correct, as JSON: {"zip": "text"}.')
@api_command
def upload(client: FallLine, as_json: bool, file: Path, name: str | None, columns: str | None) -> None:
    """Upload a CSV file."""
    try:
        types = json.loads(columns) if columns else None
    except ValueError as error:
        raise click.BadParameter(f"not JSON: {error}", param_hint="--columns") from error
    dataset = client.datasets.upload(file, name=name, columns=types)
    if as_json:
        print_json(dataset)
    else:
        count = len(dataset["columns"])
        found = f"version {dataset['version']}: {dataset['rows']} rows, {count} columns"
        click.echo(f"{dataset['id']} is {dataset['name']}, {found}")


@datasets.command("list")
@page_options
@api_command
def list_datasets(client: FallLine, as_json: bool, limit: int, after: str | None) -> None:
    """List datasets, newest first."""
    page = client.datasets.list(limit=limit, after=after)
    if as_json:
        print_json(page)
    else:
        titles = ("id", "name", "version", "status", "rows", "created")
        print_page(
            page,
            titles,
            lambda d: (d["id"], d["name"], d["version"], d["status"], d["rows"], when(d["created_at"])),
            "no datasets",
        )


@datasets.command()
@click.argument("dataset")
@api_command
def show(client: FallLine, as_json: bool, dataset: str) -> None:
    """Show one dataset and its columns, by id or name."""
    found = client.datasets.show(dataset)
    if as_json:
        print_json(found)
        return
    print_fields([(name, found[name]) for name in ("id", "name", "version", "status", "rows", "bytes", "sha256")])
    click.echo()
    rows = [(c["name"], c["type"], c["missing"], c["distinct"]) for c in found["columns"]]
    print_table(("column", "type", "missing", "distinct"), rows)


@datasets.command()
@click.argument("dataset")
@api_command
def delete(client: FallLine, as_json: bool, dataset: str) -> None:
    """Delete a dataset that no job needs any more."""
    client.datasets.delete(dataset)
    if as_json:
        print_json({"deleted": dataset})
    else:
        click.echo(f"{dataset} is deleted")
