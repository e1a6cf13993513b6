"""Bodies: JSON and YAML 1.2, and what is neither refused in words, at once, whatever it is made of."""

import asyncio
import time
from typing import Any

import pytest
from starlette.requests import Request

from service.bodies import LONGEST_YAML, read_object, validated
from service.errors import ApiError, SpecError
from service.schemas import JobSpec

YAML, JSON = "application/yaml", "application/json"


def read(body: str | bytes, kind: str = YAML) -> Any:
    """What the body holds."""
    content = body if isinstance(body, bytes) else body.encode()

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": content, "more_body": False}

    request = Request({"type": "http", "headers": [(b"content-type", kind.encode())]}, receive)
    return asyncio.run(read_object(request))[0]


def refused(body: str | bytes, kind: str = YAML) -> ApiError:
    with pytest.raises(ApiError) as refusal:
        read(body, kind)
    assert refusal.value.message
    return refusal.value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1.5E+2", 150.0),
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("NO", "NO"),
        ("true", True),
        ("null", None),
        ("~", None),
        ("0o17", 15),
        ("017", 17),
        ("12:30:45", "12:30:45"),
        ("'1'", "1"),
    ],
)
def test_yaml_is_of_version_1_2(text: str, value: Any) -> None:
    found = read(f"field: {text}")["field"]
    assert (found, type(found)) == (value, type(value))


def test_a_spec_reads_the_same_as_yaml_and_as_json() -> None:
    yaml = "dataset: digits\ntarget: label\noptimizer: {name: sgd, learning_rate: 1e-1}\nmodel: null\n"
    json = '{"dataset": "digits", "target": "label", "optimizer": {"name": "sgd", "learning_rate": 0.1}, "model": null}'
    assert read(yaml) == read(json, JSON)
    assert read(yaml, "application/yaml; charset=utf-8") == read(json, "")


@pytest.mark.parametrize(
    "text",
    [
        "a: *b",
        "a: &x [1]\nb: *x",
        "a: [1",
        "a: 1\na: 2",
        "a: !!python/object/apply:os.system [ls]",
        "a: !mine 5",
        "--- {a: 1}\n--- {b: 2}",
        "\t- a",
        "%YAML 1.1\n---\na: no",
        'a: "\\ud800"',
        "a: \x01",
    ],
)
def test_yaml_beyond_plain_data_is_refused(text: str) -> None:
    assert refused(text).status == 400


def test_yaml_that_is_not_utf_8_is_refused() -> None:
    assert refused(b"a: \xff").code == "invalid_yaml"


@pytest.mark.parametrize("body", ["", "[1]", "5", "text", "null"])
def test_what_is_not_an_object_is_refused(body: str) -> None:
    assert refused(body).code == "invalid_request"
    assert refused(body, JSON).code in ("invalid_request", "invalid_json")


@pytest.mark.parametrize(
    "body", ['{"a": 1', "{'a': 1}", '{"a": "\\ud800"}', '{"\\udfff": 1}', '{"a":' + "9" * 5000 + "}"]
)
def test_what_is_not_json_is_refused(body: str) -> None:
    assert refused(body, JSON).code == "invalid_json"


def test_a_pair_of_surrogates_is_one_letter() -> None:
    assert read('{"a": "\\ud83d\\ude00"}', JSON) == {"a": "\U0001f600"}


@pytest.mark.parametrize("kind", [JSON, YAML])
@pytest.mark.parametrize(("start", "end"), [("[", "]"), ('{"a":', "}")])
def test_deep_nesting_is_refused_at_once(kind: str, start: str, end: str) -> None:
    begun = time.perf_counter()
    assert refused(start * 9_000 + "1" + end * 9_000, kind).status == 400
    assert time.perf_counter() - begun < 5.0


def test_nesting_that_can_just_be_read_is_refused_by_the_name_of_its_field() -> None:
    for depth in (100, 300, 600, 900, 940, 960, 980):
        for start, end in (("[", "]"), ('{"a":', "}")):
            body = '{"dataset": "d", "target": ' + start * depth + end * depth + "}"
            with pytest.raises(ApiError) as refusal:
                validated(JobSpec, read(body.replace(":}", ":1}"), JSON))
            assert refusal.value.param == "target" or refusal.value.code == "invalid_json"


def test_a_long_yaml_is_refused_and_a_long_one_within_the_limit_keeps_nobody_waiting() -> None:
    assert refused(b"a" * (LONGEST_YAML + 1)).status == 413

    async def both() -> float:
        body = b"a: [" + b"1," * (LONGEST_YAML // 10) + b"]"

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        reading = asyncio.create_task(
            read_object(Request({"type": "http", "headers": [(b"content-type", YAML.encode())]}, receive))
        )
        longest, before = 0.0, time.perf_counter()
        while not reading.done():
            await asyncio.sleep(0.001)
            longest, before = max(longest, time.perf_counter() - before), time.perf_counter()
        return longest

    assert asyncio.run(both()) < 1.5


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ('{"dataset": "d", "target": "t", "optimizer": {"learning_rate": NaN}}', JSON),
        ('{"dataset": "d", "target": "t", "optimizer": {"learning_rate": 1e999}}', JSON),
        ("{dataset: d, target: t, optimizer: {learning_rate: .nan}}", YAML),
        ("{dataset: d, target: t, optimizer: {learning_rate: -.inf}}", YAML),
        ("{dataset: d, target: t, optimizer: {learning_rate: 0x" + "f" * 400 + "}}", YAML),
        ("{dataset: d, target: t, optimizer: {learning_rate: 2020-01-01}}", YAML),
    ],
)
def test_a_number_that_is_none_is_refused_by_the_name_of_its_field(body: str, kind: str) -> None:
    with pytest.raises(SpecError) as refusal:
        validated(JobSpec, read(body, kind))
    assert refusal.value.param == "optimizer.learning_rate"


def test_the_hash_is_that_of_the_bytes() -> None:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"{}", "more_body": False}

    request = Request({"type": "http", "headers": []}, receive)
    assert asyncio.run(read_object(request)) == (
        {},
        "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
    )
