"""`train` and `jobs`: submit, watch, list, show, cancel, pause, resume, scale."""

import sys
from pathlib import Path

import click
from rich.console import Console

from service.client import FallLine
from service.commands.common import (
    api_command,
    page_options,
    print_fields,
    print_json,
    print_page,
    when,
)
from service.transport import Json
from service.watch import JobWatch

SPEC = """\
# A training job. Everything but dataset and target may be left out: docs/spec.md says what each field does.
dataset: digits        # name or id of an uploaded dataset
target: label          # the column to predict
# split: {validation: 0.2, test: 0.1}
# network: {hidden: [256, 128], activation: relu}
# optimizer: {name: adamw, learning_rate: 1e-3}
# training: {epochs: auto, batch_size: auto, seed: 0}
# distribution: {workers: auto, shards: auto}
# model: {name: digits, deploy: always}
"""


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
def init(file: Path) -> None:
    """Write a spec to start from into FILE."""
    try:
        with file.open("x") as opened:
            opened.write(SPEC)
    except FileExistsError as error:
        raise click.ClickException(f"{file} is there already") from error
    click.echo(f"{file} is written; `fallline train {file} --watch` submits it")


@click.command()
@click.argument("spec", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--data",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Upload this CSV file first, under the name that the spec calls its dataset.",
)
@click.option("--watch", is_flag=True, help="Watch the job to its end.")
@api_command
def train(client: FallLine, as_json: bool, spec: Path, data: Path | None, watch: bool) -> None:
    """Submit the job that the YAML file SPEC describes."""
    text = spec.read_text()
    if data is not None:
        client.datasets.upload(data, name=_dataset_of(text, data))
    job = client.jobs.submit(text)
    if watch:
        _watch(client, job["id"], as_json)
    elif as_json:
        print_json(job)
    else:
        click.echo(f"{job['id']} is {job['status']}; `fallline jobs watch {job['id']}` shows how it goes")


def _dataset_of(spec: str, data: Path) -> str:
    from ruamel.yaml import YAML

    found = YAML(typ="safe", pure=True).load(spec)
    named = found.get("dataset") if isinstance(found, dict) else None
    return named if isinstance(named, str) else data.stem


def _watch(client: FallLine, job_id: str, as_json: bool) -> None:
    console = Console(stderr=as_json)
    try:
        job = JobWatch(client, job_id, console).run()
    except KeyboardInterrupt:
        console.print(f"\n{job_id} goes on; `fallline jobs watch {job_id}` comes back to it", highlight=False)
        sys.exit(130)
    if as_json:
        print_json(job)
    else:
        print_job(job)
    sys.exit(0 if job["status"] == "succeeded" else 1)


@click.group()
def jobs() -> None:
    """Training jobs."""


@jobs.command("list")
@click.option("--status", help="Only jobs of this status.")
@click.option("--name", help="Only jobs of this name.")
@page_options
@api_command
def list_jobs(
    client: FallLine, as_json: bool, status: str | None, name: str | None, limit: int, after: str | None
) -> None:
    """List jobs, newest first."""
    page = client.jobs.list(status=status, name=name, limit=limit, after=after)
    if as_json:
        print_json(page)
    else:
        print_page(page, ("id", "name", "status", "phase", "epoch", "created"), _row, "no jobs")


def _row(job: Json) -> tuple[object, ...]:
    progress = job["progress"]
    epoch = f"{progress['epoch']}/{progress['epochs']}"
    return job["id"], job["name"], job["status"], progress["phase"], epoch, when(job["created_at"])


@jobs.command()
@click.argument("job_id")
@api_command
def show(client: FallLine, as_json: bool, job_id: str) -> None:
    """Show one job."""
    job = client.jobs.show(job_id)
    if as_json:
        print_json(job)
    else:
        print_job(job)


def print_job(job: Json) -> None:
    """What people want to know of a job."""
    result, model, run = job["result"] or {}, job["model"], job["mlflow"] or {}
    version = f"{model['name']} version {model['version']}" if model else None
    error = job["error"] or {}
    print_fields(
        [
            ("job", job["id"]),
            ("name", job["name"]),
            ("status", job["status"]),
            ("reason", job["status_reason"] or error.get("message")),
            ("steps", result.get("steps")),
            *sorted((name, value) for name, value in job["metrics"].items()),
            ("weights_sha256", result.get("weights_sha256")),
            ("model", version and (f"{version}, deployed" if model["deployed"] else version)),
            ("mlflow run", run.get("run_id")),
            ("mlflow", run.get("url")),
        ]
    )


@jobs.command()
@click.argument("job_id")
@api_command
def watch(client: FallLine, as_json: bool, job_id: str) -> None:
    """Watch a job to its end. Ctrl-C leaves it running."""
    _watch(client, job_id, as_json)


@jobs.command()
@click.argument("job_id")
@api_command
def cancel(client: FallLine, as_json: bool, job_id: str) -> None:
    """Ask a job to stop."""
    job = client.jobs.cancel(job_id)
    if as_json:
        print_json(job)
    else:
        asked = "" if job["status"] == "cancelled" else "; it will end within a moment"
        click.echo(f"{job_id} is {job['status']}{asked}")


@jobs.command()
@click.argument("job_id")
@api_command
def pause(client: FallLine, as_json: bool, job_id: str) -> None:
    """Ask a job to stop, and to go on later from where it is."""
    job = client.jobs.pause(job_id)
    if as_json:
        print_json(job)
    else:
        asked = "" if job["status"] == "paused" else "; it will pause within a moment"
        click.echo(f"{job_id} is {job['status']}{asked}; `fallline jobs resume {job_id}` has it go on")


@jobs.command()
@click.argument("job_id")
@api_command
def resume(client: FallLine, as_json: bool, job_id: str) -> None:
    """Have a paused job go on."""
    job = client.jobs.resume(job_id)
    if as_json:
        print_json(job)
    else:
        click.echo(f"{job_id} is {job['status']}")


@jobs.command()
@click.argument("job_id")
@click.argument("workers", type=click.IntRange(min=1))
@api_command
def scale(client: FallLine, as_json: bool, job_id: str, workers: int) -> None:
    """Have a job go on with so many WORKERS."""
    job = client.jobs.scale(job_id, workers)
    if as_json:
        print_json(job)
    else:
        click.echo(f"{job_id} is {job['status']}; it goes on with {workers} workers, at most one a data shard")
