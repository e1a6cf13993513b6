"""The resolved spec as MLflow's parameters: their names are such as it takes."""

from service.tracked import flatten


def test_a_spec_is_flattened_to_texts() -> None:
    spec = {
        "network": {"hidden": [8], "activation": "relu"},
        "model": None,
        "metadata": {},
        "metadata2": {"a b.c": "d"},
    }
    assert flatten(spec) == {
        "network.hidden": "[8]",
        "network.activation": "relu",
        "model": "null",
        "metadata": "{}",
        "metadata2.a b.c": "d",
    }


def test_labels_that_are_no_names_stay_in_a_value() -> None:
    assert flatten({"class_weight": {"in": 1.0, "out": 2.0}}) == {"class_weight.in": "1.0", "class_weight.out": "2.0"}
    for label in ("out, far!", "a/b", "..", "", "x" * 65):
        assert flatten({"training": {"class_weight": {"in": 1.0, label: 2.0}}}).keys() == {"training.class_weight"}
