"""`fallline demo`: the whole way in one command, on real data, with nothing left behind.

scikit-learn's digits are uploaded to a service of their own, trained on by two Ray workers, tracked by MLflow,
deployed, and asked for a prediction over REST.
"""

import csv
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from service.client import FallLine, FallLineError
from service.local_service import LocalService, NotStarted
from service.watch import JobWatch

SPEC: dict[str, Any] = {
    "dataset": "digits",
    "target": "label",
    "split": {"validation": 0.1, "test": 0.2},
    "training": {"batch_size": 128, "epochs": 60},
    "distribution": {"workers": 2, "shards": 2},
    "model": {"name": "digits", "deploy": "always"},
}
_LOG_LINES = 15


def write_digits(path: Path) -> tuple[dict[str, float], int]:
    """Write the 1,797 digits as CSV, but for the last one: that is returned, its features by name and its label."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    names = [f"p{number}" for number in range(digits.data.shape[1])]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*names, "label"])
        for pixels, label in zip(digits.data[:-1].tolist(), digits.target[:-1].tolist(), strict=True):
            writer.writerow([*pixels, label])
    return dict(zip(names, digits.data[-1].tolist(), strict=True)), int(digits.target[-1])


def run_demo() -> int:
    """Exit code 0 when all went well; 1, with the end of the logs, when not. Ctrl-C stops everything, too."""
    console = Console(highlight=False)
    service = LocalService()
    try:
        with service:
            try:
                _run(service, console)
            except FallLineError as error:
                _tell_failure(service, console, str(error))
                return 1
            except DemoFailed as error:
                _tell_failure(service, console, str(error))
                return 1
    except NotStarted as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("stopped\n")
        return 130
    return 0


class DemoFailed(Exception):
    """The demo did not show what it is to show."""


def _run(service: LocalService, console: Console) -> None:
    console.print(f"the service is up: {service.url}")
    table = service.home / "digits.csv"
    held_out, label = write_digits(table)
    with FallLine(service.url) as client:
        dataset = client.datasets.upload(table, name="digits")
        console.print(f"uploaded {dataset['name']}: {dataset['rows']} rows, {len(dataset['columns'])} columns")
        job = JobWatch(client, client.jobs.submit(SPEC)["id"], console).run()
        if job["status"] != "succeeded":
            raise DemoFailed(f"the job is {job['status']}: {(job['error'] or {}).get('message')}")
        answer = client.predict("digits", [held_out])
        prediction = answer["predictions"][0]
        console.print(f"test accuracy {job['metrics']['test_accuracy']:.4f}")
        console.print(f"weights_sha256 {job['result']['weights_sha256']}")
        console.print(f"mlflow run {job['mlflow']['run_id']}")
        console.print(f"prediction of version {answer['version']}: {prediction['label']}, true label: {label}")
        if prediction["label"] != label:
            raise DemoFailed("the prediction is not the true label")


def _tell_failure(service: LocalService, console: Console, message: str) -> None:
    console.print(f"[red]{message}[/red]")
    for log in sorted((service.home / "logs").glob("*.log")):
        lines = log.read_text(errors="replace").splitlines()[-_LOG_LINES:]
        console.print("\n".join([f"--- {log.name} ends with:", *lines]), markup=False)
