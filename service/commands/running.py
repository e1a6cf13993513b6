"""`serve`, `demo`, `doctor`: what concerns the service itself."""

import os
import sys
from pathlib import Path

import click

from service.commands.common import print_json


@click.command()
@click.option(
    "--only",
    type=click.Choice(["api", "controller", "mlflow"]),
    help="Be this part alone, kept running by something else: a container, systemd.",
)
def serve(only: str | None) -> None:
    """Run the service: API, controller, Ray and MLflow. Ctrl-C ends it.

    Settings come from FALLLINE_* variables (docs/settings.md).
    """
    from service import one_part, supervisor
    from service.errors import ServiceError
    from service.settings import Settings

    try:
        settings = Settings.from_environment(os.environ)
        if only is not None:
            one_part.run_only(only, settings, os.environ)
        sys.exit(supervisor.serve(settings))
    except ServiceError as error:
        raise click.ClickException(str(error)) from error


@click.command()
@click.option("--write-data", type=click.Path(dir_okay=False, path_type=Path), help="Only write the dataset, as CSV.")
def demo(write_data: Path | None) -> None:
    """From nothing to a prediction: start a service, train on a real dataset, deploy, predict, stop everything."""
    from service.demo import run_demo, write_digits

    if write_data is not None:
        write_digits(write_data)
        click.echo(f"{write_data} holds scikit-learn's digits: 64 pixels p0 to p63, and the label")
        return
    sys.exit(run_demo())


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def doctor(as_json: bool) -> None:
    """Look at what the service needs, and at whether it runs. Exit code 1 when something is wrong."""
    from service.doctor import examine

    findings = examine(os.environ)
    if as_json:
        print_json([{"check": f.check, "ok": f.ok, "message": f.message} for f in findings])
    else:
        for finding in findings:
            click.echo(f"{'ok  ' if finding.ok else 'FAIL'}  {finding.check}: {finding.message}")
    sys.exit(0 if all(finding.ok for finding in findings) else 1)
