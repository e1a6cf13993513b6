"""The Python client: what the command line uses, and any program may.

    from service.client import FallLine

    with FallLine() as client:
        dataset = client.datasets.upload("digits.csv", name="digits")
        job = client.jobs.submit({"dataset": dataset["id"], "target": "label", "model": {"deploy": "always"}})
        job = client.jobs.wait(job["id"])
        client.predict("digits", [{"p0": 0.0, "p1": 13.0}])

Every answer is the JSON of docs/api.md as dictionaries; every refusal is a `FallLineError` with `code`, `message` and
`param`.
"""

import json
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Self
from urllib.parse import quote

from service.transport import FallLineError, JobTimeout, Json, Patience, ServiceError, Transport, Unreachable

__all__ = ["FINAL_STATUSES", "FallLine", "FallLineError", "JobTimeout", "ServiceError", "Unreachable", "find_url"]

DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_HOME = "~/.fallline"
FINAL_STATUSES = frozenset({"succeeded", "failed", "cancelled"})
POLL_S = 0.25
OUTAGE_S = 600.0


def find_url(environ: Mapping[str, str] = os.environ) -> str:
    """Where the service is: `FALLLINE_URL`, else what `fallline serve` wrote into its home, else the default."""
    if environ.get("FALLLINE_URL"):
        return environ["FALLLINE_URL"]
    home = Path(environ.get("FALLLINE_HOME") or DEFAULT_HOME).expanduser()
    try:
        return str(json.loads((home / "run" / "endpoints.json").read_text())["api"])
    except (OSError, ValueError, KeyError, TypeError):
        return DEFAULT_URL  # no service has been started on this home, or it is just starting


class FallLine:
    """A service at `url` (None: see `find_url`). Use it as a context manager, or call `close`. Not for several threads
    at once."""

    def __init__(self, url: str | None = None, *, timeout_s: float = 60.0) -> None:
        transport = Transport(url or find_url(), timeout_s)
        self.url = transport.url
        self._transport = transport
        self.datasets = Datasets(transport)
        self.jobs = Jobs(transport)
        self.models = Models(transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections. Nothing stops on the service's side."""
        self._transport.close()

    def predict(
        self,
        model: str,
        instances: Sequence[Mapping[str, Any] | Sequence[Any]],
        *,
        version: int | None = None,
        outputs: Sequence[str] | None = None,
    ) -> Json:
        """Predictions for `instances` (records by column name, or lists in the signature's order), in their order.

        Without `version` the deployed one answers; nothing deployed is a `ServiceError` with code `not_deployed`.
        """
        path = _model_path(model, version)
        body: Json = {"instances": list(instances)}
        if outputs is not None:
            body["outputs"] = list(outputs)
        return _json(self._transport.request("POST", f"{path}/predict", json=body, repeats=2))

    def health(self) -> Json:
        """`/readyz`'s answer, and in `ready` whether every part is up. `Unreachable` when nothing answers."""
        try:
            return {**(self._transport.request("GET", "/readyz") or {}), "ready": True}
        except ServiceError as error:
            if error.status != 503:
                raise
            return {**error.details, "message": error.message, "ready": False}


class Datasets:
    """Uploaded tables. A dataset is named by its id, or by its name for the newest version."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def upload(
        self,
        file: str | os.PathLike[str] | BinaryIO,
        *,
        name: str | None = None,
        columns: Mapping[str, str] | None = None,
        wait: bool = True,
    ) -> Json:
        """Upload a CSV file; the dataset, `ready`. `columns` corrects the types found, by column name.

        A file that cannot be read as a table raises `ServiceError` with code `invalid_dataset`, and nothing is kept.
        `wait=False` returns a large file's dataset while it is still `processing`.
        """
        if isinstance(file, (str, os.PathLike)):
            path = Path(file)
            with path.open("rb") as opened:
                return self._upload(opened, path.name, name or path.stem, columns, wait)
        return self._upload(file, "upload.csv", name, columns, wait)

    def _upload(
        self, file: BinaryIO, file_name: str, name: str | None, columns: Mapping[str, str] | None, wait: bool
    ) -> Json:
        fields = {} if name is None else {"name": name}
        if columns:
            fields["columns"] = json.dumps(dict(columns))
        dataset = _json(
            self._transport.request(
                "POST",
                "/v1/datasets",
                data=fields,
                files={"file": (file_name, file, "text/csv")},
                headers={"Idempotency-Key": uuid.uuid4().hex},
                timeout=None,  # as long as the upload takes; a dead connection still ends it
            )
        )
        patience = Patience(OUTAGE_S)
        while wait and dataset["status"] == "processing":
            time.sleep(POLL_S)
            dataset = _through_outages(self.show, dataset["id"], patience)
        if dataset["status"] == "failed":
            error = dict(dataset.get("error") or {})
            code, message = error.pop("code", "invalid_dataset"), error.pop("message", "the file cannot be read")
            raise ServiceError(422, code, message, error.pop("param", "file"), error)
        return dataset

    def list(self, *, limit: int = 20, after: str | None = None) -> Json:
        """One page, newest first: `data`, and `has_more` with `last_id` as the next page's `after`."""
        return _page(self._transport, "/v1/datasets", limit, after)

    def show(self, dataset: str) -> Json:
        return _json(self._transport.request("GET", f"/v1/datasets/{_quoted(dataset)}", repeats=2))

    def delete(self, dataset: str) -> None:
        """`ServiceError` 409 while a job uses it."""
        self._transport.request("DELETE", f"/v1/datasets/{_quoted(dataset)}")


class Jobs:
    """Training jobs. A spec is a mapping, or YAML text (docs/spec.md)."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def submit(self, spec: Mapping[str, Any] | str) -> Json:
        """The job, queued. Sent under an `Idempotency-Key`: a connection that breaks off does not submit it twice."""
        headers = {"Idempotency-Key": uuid.uuid4().hex}
        return _json(self._transport.request("POST", "/v1/jobs", repeats=2, **_spec_body(spec, headers)))

    def dry_run(self, spec: Mapping[str, Any] | str) -> Json:
        """The plan of a spec, everything checked and nothing started."""
        arguments = _spec_body(spec, {})
        return _json(self._transport.request("POST", "/v1/jobs", params={"dry_run": "true"}, repeats=2, **arguments))

    def list(
        self, *, status: str | None = None, name: str | None = None, limit: int = 20, after: str | None = None
    ) -> Json:
        """One page, newest first: `data`, and `has_more` with `last_id` as the next page's `after`."""
        return _page(self._transport, "/v1/jobs", limit, after, status=status, name=name)

    def show(self, job_id: str) -> Json:
        return _json(self._transport.request("GET", f"/v1/jobs/{_quoted(job_id)}", repeats=2))

    def cancel(self, job_id: str) -> Json:
        """Ask the job to stop; repeatable. The job, with `cancel_requested`."""
        return _json(self._transport.request("POST", f"/v1/jobs/{_quoted(job_id)}/cancel", repeats=2))

    def pause(self, job_id: str) -> Json:
        """Ask the job to stop and to keep where it is; repeatable. The job, `paused` or with `pause_requested`."""
        return _json(self._transport.request("POST", f"/v1/jobs/{_quoted(job_id)}/pause", repeats=2))

    def resume(self, job_id: str) -> Json:
        """Have a paused job go on; repeatable. The job, `queued` again."""
        return _json(self._transport.request("POST", f"/v1/jobs/{_quoted(job_id)}/resume", repeats=2))

    def scale(self, job_id: str, workers: int) -> Json:
        """Have the job go on with so many workers, from its next step on; repeatable."""
        path = f"/v1/jobs/{_quoted(job_id)}/scale"
        return _json(self._transport.request("POST", path, json={"workers": workers}, repeats=2))

    def checkpoints(self, job_id: str, *, after: int | None = None, limit: int = 20) -> Json:
        """One page of the job's checkpoints, newest first; `after` is a step."""
        parameters = _given(after=after, limit=limit)
        path = f"/v1/jobs/{_quoted(job_id)}/checkpoints"
        return _json(self._transport.request("GET", path, params=parameters, repeats=2))

    def metrics(self, job_id: str, *, max_points: int | None = None) -> Json:
        """Every series, against the committed step."""
        return _json(
            self._transport.request("GET", f"/v1/jobs/{_quoted(job_id)}/metrics", params=_given(max_points=max_points))
        )

    def events_page(self, job_id: str, *, after: int = 0, limit: int = 100) -> Json:
        """One page of the job's events after number `after`, oldest first."""
        parameters = _given(after=after, limit=limit)
        return _json(self._transport.request("GET", f"/v1/jobs/{_quoted(job_id)}/events", params=parameters))

    def events(self, job_id: str, *, after: int = 0, outage_s: float = OUTAGE_S) -> Iterator[Json]:
        """Every event after number `after`, live, each once, until the job ends.

        A connection that breaks off is opened again after the last event seen (`Last-Event-ID`); an outage of more
        than `outage_s` raises the error itself.
        """
        last, patience = after, Patience(outage_s)
        while True:
            try:
                for event in self._transport.stream(f"/v1/jobs/{_quoted(job_id)}/events", {"Last-Event-ID": str(last)}):
                    patience.reset()
                    if event["id"] > last:
                        last = event["id"]
                        yield event
                # The stream ended in good order: at the job's end, or because the service stops.
                ended = self.show(job_id)["status"] in FINAL_STATUSES
                page = self.events_page(job_id, after=last)
                for event in page["data"]:
                    last = event["id"]
                    yield event
                if ended and not page["has_more"]:
                    return
                patience.pause()
            except FallLineError as error:
                patience.wait(error)

    def wait(self, job_id: str, *, timeout_s: float | None = None, outage_s: float = OUTAGE_S) -> Json:
        """The job, at its end (`succeeded`, `failed` or `cancelled`). Raises `JobTimeout` after `timeout_s`."""
        patience, began = Patience(outage_s), time.monotonic()
        while True:
            job = _through_outages(self.show, job_id, patience)
            if job["status"] in FINAL_STATUSES:
                return job
            if timeout_s is not None and time.monotonic() - began >= timeout_s:
                raise JobTimeout(job_id, timeout_s)
            time.sleep(POLL_S)


class Models:
    """Registered models, their versions, and which one is deployed."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(self, *, limit: int = 20, after: str | None = None) -> Json:
        """One page, newest first: `data`, and `has_more` with `last_id` as the next page's `after`."""
        return _page(self._transport, "/v1/models", limit, after)

    def show(self, model: str, version: int | None = None) -> Json:
        """The model with its versions, or one version."""
        return _json(self._transport.request("GET", _model_path(model, version), repeats=2))

    def deploy(self, model: str, version: int, *, force: bool = False) -> Json:
        """Serve `version` from now on. Another signature than the deployed one's is refused unless `force`."""
        body = {"version": version, "force": force}
        return _json(self._transport.request("POST", f"{_model_path(model)}/deploy", json=body, repeats=2))


def _quoted(name: str) -> str:
    return quote(name, safe="")


def _model_path(model: str, version: int | None = None) -> str:
    path = f"/v1/models/{_quoted(model)}"
    return path if version is None else f"{path}/versions/{version}"


def _spec_body(spec: Mapping[str, Any] | str, headers: dict[str, str]) -> Json:
    if isinstance(spec, str):
        return {"content": spec.encode(), "headers": {**headers, "Content-Type": "application/yaml"}}
    return {"json": dict(spec), "headers": headers}


def _page(transport: Transport, path: str, limit: int, after: str | None, **filters: Any) -> Json:
    return _json(transport.request("GET", path, params=_given(limit=limit, after=after, **filters), repeats=2))


def _given(**parameters: Any) -> Json:
    return {name: value for name, value in parameters.items() if value is not None}


def _through_outages(show: Callable[[str], Json], name: str, patience: Patience) -> Json:
    while True:
        try:
            answer = show(name)
        except FallLineError as error:
            patience.wait(error)
        else:
            patience.reset()
            return answer


def _json(answer: Any) -> Json:
    """An answer that must be an object; anything else is not this service's."""
    if not isinstance(answer, dict):
        raise ServiceError(502, "not_an_object", f"expected a JSON object, got {type(answer).__name__}")
    return answer
