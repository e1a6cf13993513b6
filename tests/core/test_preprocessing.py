import copy
import json
import pickle
from dataclasses import replace

import numpy as np
import pytest

from core.columns import Column, distinct_values, number_column, text_column
from core.errors import CoreError, DataError, SpecificationError
from core.features import MAX_CATEGORIES
from core.preprocessing import Preprocessing, PreprocessingSpec

SPEC = PreprocessingSpec(("age", "city", "smoker", "visits"), ("risk",), "classification")
ALL = np.arange(6)


def table() -> dict[str, Column]:
    return {
        "age": number_column("age", [31.5, None, 40.25, 22.0, 1e6, 58.0]),
        "city": text_column("city", ["Ulm", "Köln", "", "Ulm", "Bonn", None]),
        "smoker": number_column("smoker", [1, 0, 0, None, 1, 0], "boolean"),
        "visits": number_column("visits", [3, 2, 2**53, 0, None, 7], "integer"),
        "risk": text_column("risk", ["low", "high", "low", "low", "none", "high"]),
        "cost": number_column("cost", [10.0, 20.0, 30.0, 40.0, 50.0, 60.0]),
        "days": number_column("days", [1, 1, 1, 1, 1, 1], "integer"),
    }


def fitted(spec: PreprocessingSpec = SPEC, rows: np.ndarray = ALL) -> Preprocessing:
    return Preprocessing.fit(spec, table(), rows)


def records(names: tuple[str, ...]) -> list[dict]:
    columns = table()
    return [{name: columns[name].value(row) for name in names} for row in range(6)]


@pytest.mark.parametrize("numeric", ["standardize", "none"])
def test_training_and_serving_features_are_bit_identical(numeric: str) -> None:
    preprocessing = fitted(replace(SPEC, numeric=numeric))
    trained = preprocessing.transform(table(), ALL)
    named = records(SPEC.features)
    ordered = [[row[name] for name in SPEC.features] for row in named]
    through_json = json.loads(json.dumps(named))
    one_by_one = np.concatenate([preprocessing.transform_records([row]) for row in named])
    assert trained.dtype == np.float32
    for served in (named, ordered, through_json):
        assert preprocessing.transform_records(served).tobytes() == trained.tobytes()
    assert one_by_one.tobytes() == trained.tobytes()


def test_numeric_rows_served_at_once_are_bit_identical_over_many_rows() -> None:
    rng = np.random.default_rng(1)
    columns = {f"x{k}": Column(f"x{k}", "number", rng.normal(1e5, 3.0, 20_000)) for k in range(3)}
    columns["y"] = Column("y", "number", rng.normal(size=20_000))
    spec = PreprocessingSpec(("x0", "x1", "x2"), ("y",), "regression")
    preprocessing = Preprocessing.fit(spec, columns, np.arange(15_000))
    trained = preprocessing.transform(columns, np.arange(20_000))  # more than one chunk
    rows = np.stack([columns[name].values for name in spec.features], axis=1).tolist()
    assert preprocessing.transform_records(rows).tobytes() == trained.tobytes()
    assert np.abs(trained[:15_000].mean(axis=0)).max() < 1e-5
    np.testing.assert_allclose(trained[:15_000].std(axis=0), 1.0, atol=1e-5)


def test_the_formula_column_by_column() -> None:
    rows = np.array([0, 1, 2, 3, 5])
    preprocessing = fitted(rows=rows)
    features = preprocessing.transform(table(), ALL)
    assert preprocessing.feature_names == ("age", "city=Köln", "city=Ulm", "smoker", "visits")  # Bonn: row 4 alone
    assert preprocessing.width == 5
    ages = np.array([31.5, 40.25, 22.0, 58.0])
    np.testing.assert_allclose(features[0, 0], (31.5 - ages.mean()) / ages.std(), rtol=1e-6)
    assert features[1, 0] == 0.0  # a gap is the mean
    assert features[:, 1:3].tolist() == [[0, 1], [1, 0], [0, 0], [0, 1], [0, 0], [0, 0]]
    np.testing.assert_allclose(features[0, 3], (1 - 0.25) / np.sqrt(0.25 * 0.75), rtol=1e-6)


def test_without_standardizing_gaps_are_the_mean_of_the_training_rows() -> None:
    features = fitted(replace(SPEC, numeric="none"), np.array([0, 1, 2])).transform(table(), ALL)
    assert features[:, 0].tolist() == [31.5, 35.875, 40.25, 22.0, 1e6, 58.0]


@pytest.mark.parametrize("value", [0.1, 1e308, -5e-324, 0.0])
def test_a_constant_or_empty_column_is_all_zero(value: float) -> None:
    columns = {
        "same": number_column("same", [value] * 3),
        "none": number_column("none", [None] * 3),
        "y": text_column("y", ["a", "b", "a"]),
    }
    spec = PreprocessingSpec(("same", "none"), ("y",), "classification")
    assert Preprocessing.fit(spec, columns, np.arange(3)).transform(columns, np.arange(3)).tolist() == [[0, 0]] * 3


@pytest.mark.parametrize("scale", [1e-300, 1e307])
def test_values_of_any_size_are_standardized(scale: float) -> None:
    columns = {"x": number_column("x", [-3 * scale, scale, 2 * scale]), "y": text_column("y", ["a", "b", "a"])}
    spec = PreprocessingSpec(("x",), ("y",), "classification")
    features = Preprocessing.fit(spec, columns, np.arange(3)).transform(columns, np.arange(3))
    np.testing.assert_allclose(features[:, 0], [-1.3887301, 0.4629100, 0.9258201], rtol=1e-6)


def test_unseen_and_missing_categories() -> None:
    row = records(SPEC.features)[0]
    lenient = fitted()
    for city in ("Rom", None, "", "  ", "NA", float("nan")):
        assert lenient.transform_records([row | {"city": city}])[0, 1:4].tolist() == [0, 0, 0]
    assert lenient.transform_records([row | {"city": " Ulm "}])[0, 1:4].tolist() == [0, 0, 1]
    strict = fitted(replace(SPEC, unseen="error"))
    assert strict.transform_records([row | {"city": None}])[0, 1:4].tolist() == [0, 0, 0]
    with pytest.raises(DataError, match="row 1, column 'city': got 'Rom'"):
        strict.transform_records([row, row | {"city": "Rom"}])
    narrow = fitted(replace(SPEC, unseen="error"), np.array([0, 1]))
    with pytest.raises(DataError, match="row 4, column 'city': got 'Bonn'"):
        narrow.transform(table(), ALL)


def test_missing_values_may_be_errors() -> None:
    spec = replace(SPEC, missing="error")
    strict = fitted(spec, np.array([0]))
    strict.transform(table(), np.array([0]))
    with pytest.raises(DataError, match="row 1, column 'age': got None"):
        strict.transform(table(), np.array([0, 1]))
    row = records(SPEC.features)[0]
    with pytest.raises(DataError, match="row 0, column 'city'"):
        strict.transform_records([row | {"city": None}])
    with pytest.raises(DataError, match="row 1, column 'visits'"):
        strict.transform_records([row, row | {"visits": None}])


@pytest.mark.parametrize(
    ("instances", "row", "column", "words"),
    [
        ([{"age": 1, "city": "Ulm", "smoker": True, "visit": 1}], 0, "visit", "did you mean 'visits'"),
        ([{"age": 1, "city": "Ulm", "smoker": True}], 0, "visits", "every feature to be named"),
        ([{"age": 1, "city": "Ulm", "smoker": True, "visits": 1, "risk": "low"}], 0, "risk", "no such column"),
        ([[1, "Ulm", True, 2], [1, "Ulm", True]], 1, None, "3 values"),
        ([[1, "Ulm", True, 2], [1, "Ulm", True, "two"]], 1, "visits", "'two'"),
        ([[1, "Ulm", True, "2"]], 0, "visits", "a number"),
        ([[1, 5, True, 2]], 0, "city", "text"),
        ([[1, "Ulm", 3, 2]], 0, "smoker", "true or false"),
        ([[1, ["Ulm"], True, 2]], 0, "city", "text"),
        ([[[1], "Ulm", True, 2]], 0, "age", "a number"),
        ([[1, "Ulm", True, 10**400]], 0, "visits", "a number"),
        ([[float("inf"), "Ulm", True, 1]], 0, "age", "float32"),
        ([[1, "Ulm", True, 1], [1e300, "Ulm", True, 1]], 1, "age", "float32"),
        ([5], 0, None, "an object of feature values"),
        (["Ulm"], 0, None, "an object of feature values"),
        ([None], 0, None, "an object of feature values"),
    ],
)
def test_a_row_that_cannot_be_taken_is_told_by_place(instances, row, column, words) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(DataError) as caught:
        fitted().transform_records(instances)
    assert (caught.value.row, caught.value.column) == (row, column)
    assert words in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def numeric() -> Preprocessing:
    columns = {name: number_column(name, [1.0, 2.0, 4.0]) for name in ("a", "b", "y")}
    return Preprocessing.fit(PreprocessingSpec(("a", "b"), ("y",), "regression"), columns, np.arange(3))


@pytest.mark.parametrize("wrong", ["1", "x", [1.0], {}, "inf"])
def test_text_among_plain_numbers_is_never_taken_for_a_number(wrong: object) -> None:
    with pytest.raises(DataError, match="row 1, column 'b'"):
        numeric().transform_records([[1.0, 2.0], [1.0, wrong]])


def test_every_way_to_write_a_gap_among_plain_numbers() -> None:
    expected = numeric().transform_records([[1.0, float("nan")]]).tobytes()
    for gap in (None, "", "NA", np.nan):
        assert numeric().transform_records([{"b": gap, "a": 1}]).tobytes() == expected


def test_no_rows_are_no_features() -> None:
    assert numeric().transform_records([]).shape == (0, 2)
    assert fitted().transform_records([]).shape == (0, 6)


def test_one_feature_and_text_alone() -> None:
    columns = {"t": text_column("t", ["a", "b", "a"]), "n": number_column("n", [1.0, 2.0, 3.0])}
    text = Preprocessing.fit(PreprocessingSpec(("t",), ("n",), "regression"), columns, np.arange(3))
    assert text.transform_records([["b"], {"t": "a"}]).tolist() == [[0, 1], [1, 0]]
    number = Preprocessing.fit(PreprocessingSpec(("n",), ("t",), "classification"), columns, np.arange(3))
    assert number.transform_records([{"n": 2}, [2.0]]).tolist() == [[0], [0]]


@pytest.mark.parametrize(
    ("column", "classes", "key"),
    [
        (text_column("y", ["b", "a", "b"]), ("a", "b"), "b"),
        (number_column("y", [7, -1, 7], "integer"), (-1, 7), "7"),
        (number_column("y", [1, 0, 1], "boolean"), (False, True), "true"),
        (number_column("y", [1.5, 0.5, 1.5]), (0.5, 1.5), "1.5"),
    ],
)
def test_labels_keep_the_datasets_type(column: Column, classes: tuple, key: str) -> None:
    columns = {"x": number_column("x", [1.0, 2.0, 3.0]), "y": column}
    preprocessing = Preprocessing.fit(PreprocessingSpec(("x",), ("y",), "classification"), columns, np.arange(2))
    assert preprocessing.classes == classes
    assert [type(value) for value in preprocessing.classes] == [type(value) for value in classes]
    targets = preprocessing.transform_targets(columns, np.arange(3))
    assert targets.dtype == np.int32
    assert targets.tolist() == [1, 0, 1]
    (answer,) = preprocessing.decode(np.array([[0.25, 0.75]], dtype=np.float32))
    assert answer["label"] == classes[1]
    assert type(answer["label"]) is type(classes[1])
    assert answer["probabilities"][key] == 0.75
    assert preprocessing.decode(np.array([[0.25, 0.75]]), ["label"]) == [{"label": classes[1]}]
    with pytest.raises(SpecificationError, match="outputs is 'value'; expected one of label, probabilities"):
        preprocessing.decode(np.array([[0.25, 0.75]]), ["value"])


def test_classes_given_hold_for_values_that_the_training_rows_lack() -> None:
    columns = table()
    preprocessing = Preprocessing.fit(SPEC, columns, np.array([0, 1]), ("high", "low", "none"))
    assert preprocessing.outputs == 3
    assert preprocessing.transform_targets(columns, ALL).tolist() == [1, 0, 1, 1, 2, 0]
    few = Preprocessing.fit(SPEC, columns, np.array([0, 1]), ("high", "low"))
    with pytest.raises(DataError, match="row 4, column 'risk': got 'none'"):
        few.transform_targets(columns, ALL)
    numbers = Preprocessing.fit(replace(SPEC, targets=("cost",)), columns, ALL, (10.0, 20.0, 40.0))
    with pytest.raises(DataError, match=r"row 2, column 'cost': got 30\.0"):
        numbers.transform_targets(columns, ALL)


def test_regression_targets_are_standardized_and_come_back_in_the_users_units() -> None:
    spec = PreprocessingSpec(("age",), ("cost", "days"), "regression")
    preprocessing = fitted(spec)
    targets = preprocessing.transform_targets(table(), ALL)
    assert targets.dtype == np.float32
    assert preprocessing.outputs == 2
    assert preprocessing.target_means.tolist() == [35.0, 1.0]
    np.testing.assert_allclose(preprocessing.target_scales, [np.std([10, 20, 30, 40, 50, 60]), 1.0])
    assert targets[:, 1].tolist() == [0.0] * 6
    assert abs(targets[:, 0].mean()) < 1e-6
    answers = preprocessing.decode(targets)
    np.testing.assert_allclose([row["values"]["cost"] for row in answers], [10, 20, 30, 40, 50, 60], rtol=1e-6)
    assert answers[0]["values"]["days"] == 1.0
    single = fitted(replace(spec, targets=("cost",)))
    assert single.decode(np.zeros((1, 1), np.float32)) == [{"value": 35.0}]


def test_signature_and_example() -> None:
    preprocessing = fitted()
    signature = preprocessing.signature()
    assert [(entry["name"], entry["type"]) for entry in signature["inputs"]] == [
        ("age", "number"),
        ("city", "text"),
        ("smoker", "boolean"),
        ("visits", "integer"),
    ]
    assert signature["outputs"] == [{"name": "label", "type": "text"}, {"name": "probabilities", "type": "object"}]
    example = preprocessing.features.example()
    assert [type(value) for value in example.values()] == [float, str, bool, int]
    assert preprocessing.transform_records([example]).shape == (1, preprocessing.width)


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_json_gives_the_same_preprocessing_again(task: str) -> None:
    spec = SPEC if task == "classification" else replace(SPEC, task=task, targets=("cost", "days"))
    preprocessing = fitted(spec)
    again = Preprocessing.from_json(json.loads(json.dumps(preprocessing.to_json())))
    assert again.spec == spec
    assert again.to_json() == preprocessing.to_json()
    assert again.classes == preprocessing.classes
    assert again.transform(table(), ALL).tobytes() == preprocessing.transform(table(), ALL).tobytes()
    assert again.transform_targets(table(), ALL).tobytes() == preprocessing.transform_targets(table(), ALL).tobytes()


def _wrong(path: list, value: object) -> dict:
    data = copy.deepcopy(fitted().to_json())
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return data


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["more"], 1),
        (["spec"], None),
        (["spec", "task"], "guessing"),
        (["spec", "features"], ["age"]),
        (["features"], []),
        (["features", 0], 5),
        (["features", 0, "type"], "date"),
        (["features", 0, "scale"], 0.0),
        (["features", 0, "fill"], float("nan")),
        (["features", 0, "fill"], True),
        (["features", 1, "categories"], ["b", "a"]),
        (["features", 1, "categories"], [1]),
        (["target", "classes"], ["low"]),
        (["target", "classes"], [1, 2]),
        (["target", "classes"], ["low", "high"]),
        (["target", "type"], "date"),
        (["target"], None),
    ],
)
def test_json_that_is_no_preprocessing_is_refused(path: list, value: object) -> None:
    with pytest.raises(SpecificationError):
        Preprocessing.from_json(_wrong(path, value))


@pytest.mark.parametrize(
    "change",
    [
        {"features": ()},
        {"features": ("age", "age")},
        {"features": ("age", "risk")},
        {"targets": ("risk", "cost")},
        {"task": "ranking"},
        {"numeric": "minmax"},
        {"missing": "drop"},
        {"unseen": "maybe"},
    ],
)
def test_a_specification_that_exists_is_valid(change: dict) -> None:
    with pytest.raises(SpecificationError):
        replace(SPEC, **change)
    assert PreprocessingSpec.from_json(SPEC.to_json()) == SPEC


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"features": ("ages",)}, "'ages'"),
        ({"targets": ("cost2",)}, "'cost2'"),
        ({"targets": ("city",), "features": ("age",), "task": "regression"}, "holds text"),
        ({"targets": ("days",), "features": ("age",)}, "at least two classes"),
    ],
)
def test_columns_that_do_not_suit_the_specification(change: dict, words: str) -> None:
    with pytest.raises(SpecificationError, match=words):
        fitted(replace(SPEC, **change))


def test_infinite_values_and_too_many_categories_are_refused() -> None:
    columns = table() | {"age": number_column("age", [1.0, float("inf"), 2.0, 3.0, 4.0, 5.0])}
    with pytest.raises(DataError, match="row 1, column 'age'"):
        Preprocessing.fit(SPEC, columns, ALL)
    count = MAX_CATEGORIES + 1
    names = {
        "id": text_column("id", [f"u{k}" for k in range(count)]),
        "y": number_column("y", [float(k) for k in range(count)]),
        "gap": text_column("gap", [None] * count),
    }
    with pytest.raises(SpecificationError, match="exclude it"):
        Preprocessing.fit(PreprocessingSpec(("id",), ("y",), "regression"), names, np.arange(count))
    with pytest.raises(SpecificationError, match="a column that holds values"):
        Preprocessing.fit(PreprocessingSpec(("gap",), ("y",), "regression"), names, np.arange(count))


def test_a_table_of_other_types_is_refused() -> None:
    with pytest.raises(SpecificationError, match="a column of type text"):
        fitted().transform(table() | {"city": number_column("city", [1.0] * 6)}, ALL)


def test_distinct_values_are_typed_and_sorted() -> None:
    columns = table()
    assert distinct_values(columns["visits"]) == (0, 2, 3, 7, 2**53)
    assert distinct_values(columns["city"], np.array([0, 2, 3])) == ("Ulm",)
    assert distinct_values(columns["smoker"]) == (False, True)


def test_every_error_is_a_core_error() -> None:
    assert issubclass(DataError, CoreError)
    assert issubclass(SpecificationError, CoreError)
