"""What the commands share: the service's address, `--json`, errors in words, tables."""

import functools
import json
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import click

from service.client import FallLine, FallLineError, ServiceError, Unreachable
from service.transport import Json


class Failed(click.ClickException):
    """A command that failed: exit code 1, the message on standard error, with `--json` the error object instead."""

    exit_code = 1

    def __init__(self, message: str, error: Json, as_json: bool) -> None:
        super().__init__(message)
        self.error, self.as_json = error, as_json

    def show(self, file: Any = None) -> None:
        if self.as_json:
            click.echo(json.dumps({"error": self.error}), err=True)
        else:
            click.echo(f"Error: {self.message}", err=True)


class LaterGroup(click.Group):
    """A group that knows the commands of later versions by name, and says so instead of "no such command"."""

    def __init__(self, *arguments: Any, later: frozenset[str] = frozenset(), **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.later = later

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] in self.later:
            context.fail(f"{context.command_path} {args[0]} is not supported yet")
        return super().resolve_command(context, args)


def api_command(function: Callable[..., None]) -> Callable[..., None]:
    """Gives a command `--url` and `--json`, and calls it with a client and whether JSON is wanted."""

    @click.option("--url", help="The service's address. Default: FALLLINE_URL, else where `fallline serve` runs.")
    @click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
    @functools.wraps(function)
    def command(url: str | None, as_json: bool, **arguments: Any) -> None:
        try:
            with FallLine(url) as client:
                function(client, as_json, **arguments)
        except FallLineError as error:
            raise failed(error, as_json) from error
        except ValueError as error:
            if url is None or "address" not in str(error):
                raise
            raise click.BadParameter(str(error), param_hint="--url") from error

    return command


def failed(error: FallLineError, as_json: bool) -> Failed:
    """A client's error as the command's end."""
    fields: Json = {"code": error.code, "message": error.message, "param": error.param}
    message = str(error)
    if isinstance(error, ServiceError):
        fields.update(error.details)
        if hint := error.details.get("hint"):
            message += f"\n{hint}"
    if isinstance(error, Unreachable):
        message += "\nIs the service running? `fallline serve` starts it, `fallline doctor` looks at what is wrong."
    return Failed(message, fields, as_json)


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(titles: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Aligned columns without borders: for eyes, `cut` and `awk` alike. None is printed as `-`."""
    cells = [list(titles), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[place]) for row in cells) for place in range(len(titles))]
    for row in cells:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def print_fields(fields: Iterable[tuple[str, Any]]) -> None:
    """One `name  value` line for each field that has a value."""
    shown = [(name, value) for name, value in fields if value is not None]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        click.echo(f"{name.ljust(width)}  {_cell(value)}")


def print_page(page: Json, titles: Sequence[str], row: Callable[[Json], Sequence[Any]], empty: str) -> None:
    """A list's page as a table; says when there is more."""
    if not page["data"]:
        click.echo(empty)
        return
    print_table(titles, (row(item) for item in page["data"]))
    if page.get("has_more"):
        click.echo(f"more: --after {page['last_id']}")


def page_options(function: Callable[..., None]) -> Callable[..., None]:
    """`--limit` and `--after`, as every list has them."""
    function = click.option("--after", help="Show what follows this id.")(function)
    return click.option("--limit", type=click.IntRange(1, 100), default=20, show_default=True)(function)


def when(timestamp: float | None) -> str | None:
    """Local time to the second."""
    return None if timestamp is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(timestamp))


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
