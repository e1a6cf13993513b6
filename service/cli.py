"""The command line: `fallline`. Exit code 0: done, 1: failed, 2: usage."""

import click

from service.commands.common import LaterGroup
from service.commands.datasets import datasets
from service.commands.jobs import init, jobs, train
from service.commands.models import models, predict
from service.commands.running import demo, doctor, serve


@click.group(cls=LaterGroup, later=frozenset({"replay", "verify", "keys"}))
@click.version_option(package_name="fallline")
def main() -> None:
    """Fall Line: post a training spec, get a trained, tracked, deployed network."""


for command in (serve, demo, init, train, jobs, datasets, models, predict, doctor):
    main.add_command(command)


if __name__ == "__main__":
    main()
