"""What a job takes over from the one that it starts from, and what must be alike for the weights to mean the same.

Features, their fitted treatment and the classes are the source's, and so is the network: what the spec leaves out is
taken from there, what it states must agree (docs/decisions/0009). Pure; every refusal is a SpecError.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from core.columns import Value
from core.model_file import Model
from core.network import NetworkSpec
from core.network_spec import Block, blocks
from core.specification import Choice
from service.errors import SpecError
from service.fields import AUTO
from service.resolve_data import ResolvedData
from service.schemas import JobSpec
from service.schemas_network import Network
from worker.warm_start import preprocessing_sha256

Json = dict[str, Any]
_NOTATIONS = ("hidden", "layers", "graph")
_TREATMENT = ("activation", "dropout", "layer_norm", "initializer")


@dataclass(frozen=True)
class Source:
    """What a job starts from. `section` is how the resolved spec names it, by numbers that stay what they are."""

    section: Json
    model: Model

    def __str__(self) -> str:
        return source_name(self.section)

    @property
    def hashes(self) -> Json:
        """What of it decides the job's weights."""
        return {
            "weights_sha256": self.model.weights_sha256,
            "preprocessing_sha256": preprocessing_sha256(self.model.preprocessing),
        }


def source_name(section: Json) -> str:
    """In words: `job_1`, `job_1 at step 400`, `version 3 of digits`."""
    if "model" in section:
        return f"version {section['version']} of {section['model']}"
    return f"{section['job']} at step {section['step']}" if "step" in section else str(section["job"])


def adopt(spec: JobSpec, source: Source, dataset: Json, classes: Sequence[Value]) -> JobSpec:
    """`spec` with what it leaves to the source filled in; `classes`: the values of the dataset's target.

    Raises SpecError where the dataset has not the source's columns, or the spec states another treatment of them.
    """
    fitted, theirs = source.model.preprocessing, source.model.spec
    wanted = fitted.spec
    targets = spec.target if isinstance(spec.target, list) else [spec.target]
    _agree("target", targets, list(wanted.targets), source)
    _check_columns(source, dataset)
    _check_classes(source, dataset, classes)
    if spec.task != AUTO:
        _agree("task", spec.task, wanted.task, source)
    for name, value in spec.preprocessing.model_dump(exclude_unset=True).items():
        _agree(f"preprocessing.{name}", value, getattr(wanted, name), source)
    if "precision" in spec.training.model_fields_set:
        _agree("training.precision", spec.training.precision, source.model.network.dtype, source)
    treatment = {name: getattr(wanted, name) for name in type(spec.preprocessing).model_fields}
    return spec.model_copy(
        update={
            "task": wanted.task,
            "features": spec.features if "features" in spec.model_fields_set else list(wanted.features),
            "preprocessing": spec.preprocessing.model_copy(update=treatment),
            "network": _network(spec.network, theirs["network"]),
            "loss": theirs["loss"] if spec.loss == AUTO else spec.loss,
            "training": spec.training.model_copy(update={"precision": source.model.network.dtype}),
        }
    )


def adopt_data(data: ResolvedData, source: Source) -> ResolvedData:
    """`data` with the source's order of features, and its widths; SpecError where the features are others."""
    fitted = source.model.preprocessing
    if others := sorted(set(data.features) ^ set(fitted.spec.features)):
        words = [f"{'adds' if name in data.features else 'lacks'} {name!r}" for name in others[:10]]
        message = f"{source} has other features: the spec {', '.join(words)}: leave features out, or state the same"
        raise SpecError("features", message, details={"columns": others[:100]})
    return replace(data, features=list(fitted.spec.features), width=fitted.width, outputs=fitted.outputs)


def check_network(stated: Network, network: NetworkSpec, source: Source) -> None:
    """Raises SpecError unless weights of the source mean the same in `network`, which the spec has `stated` in part.

    Dropout and the initializer may differ: neither is there when the network predicts.
    """
    theirs = source.model.network
    _agree("loss", _loss(network), _loss(theirs), source)
    ours, wanted = _meanings(network), _meanings(theirs)
    if ours == wanted:
        return
    given = stated.model_fields_set
    notation = next((name for name in _NOTATIONS if name in given), "hidden")
    differs = notation
    if notation == "hidden" and len(ours) == len(wanted):
        fields = {field for one, other in zip(ours, wanted, strict=True) for field in one if one[field] != other[field]}
        differs = next((name for name in ("activation", "layer_norm") if fields == {name}), notation)
    raise _differs(f"network.{differs}", _described(ours), _described(wanted), source)


def _network(given: Network, section: Json) -> Network:
    """The source's network, but for what is stated; layers and nodes follow what is stated for all of them."""
    stated = {name: value for name, value in given.model_dump(exclude_unset=True).items() if value is not None}
    taken = {name: value for name, value in section.items() if name not in _NOTATIONS}
    if not stated.keys() & set(_NOTATIONS):
        notation = next((name for name in ("layers", "graph") if section.get(name)), "hidden")
        taken[notation] = [_without(layer, stated) for layer in section[notation]]
    return Network.model_validate(taken | stated)


def _without(layer: Any, stated: Json) -> Any:
    if not isinstance(layer, dict) or layer.get("operation", "affine") != "affine":
        return layer
    return {name: value for name, value in layer.items() if name not in _TREATMENT or name not in stated}


def _check_columns(source: Source, dataset: Json) -> None:
    fitted = source.model.preprocessing
    wanted = dict(zip(fitted.spec.features, fitted.features.types, strict=True))
    wanted |= dict.fromkeys(fitted.spec.targets, fitted.targets.type)
    types = {column["name"]: column["type"] for column in dataset["columns"]}
    problems = {}
    for name, kind in wanted.items():
        if name not in types:
            problems[name] = f"{name!r} ({kind}) is missing"
        elif not _suits(types[name], kind, name in fitted.spec.targets and fitted.classes is None):
            problems[name] = f"{name!r} is {types[name]}, not {kind}"
    if problems:
        shown = "; ".join(list(problems.values())[:10]) + (f"; and {len(problems) - 10} more" * (len(problems) > 10))
        message = f"{dataset['name']} has not the columns that {source} was trained on: {shown}"
        raise SpecError("dataset", message, details={"columns": list(problems)[:100]})


def _suits(kind: str, wanted: str, is_value: bool) -> bool:
    """Whole numbers are numbers; the targets of a regression may be anything but text."""
    return kind == wanted or (kind, wanted) == ("integer", "number") or (is_value and kind != "text")


def _check_classes(source: Source, dataset: Json, classes: Sequence[Value]) -> None:
    known = source.model.preprocessing.classes
    if known is None:
        return
    unknown = sorted(set(classes) - set(known))
    if unknown:
        target = source.model.preprocessing.spec.targets[0]
        holds = f"{target!r} of {dataset['name']} holds {_listed(unknown)}"
        message = f"{holds}, which {source} does not know; it knows {_listed(known)}"
        raise SpecError("dataset", message, details={"columns": [target], "classes": unknown[:100]})


def _agree(field: str, ours: Any, theirs: Any, source: Source) -> None:
    if ours != theirs:
        raise _differs(field, _shown(ours), _shown(theirs), source)


def _differs(field: str, ours: str, theirs: str, source: Source) -> SpecError:
    return SpecError(field, f"{source} has {theirs:.300}; the spec states {ours:.300}: leave it out, or state the same")


def _shown(value: Any) -> str:
    return _listed(value) if isinstance(value, list) else str(value)


def _listed(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values[:10])) + (f" and {len(values) - 10} more" if len(values) > 10 else "")


def _loss(network: NetworkSpec) -> str:
    return f"huber of delta {network.huber_delta:g}" if network.loss == "huber" else network.loss


def _meanings(network: NetworkSpec) -> list[Json]:
    """What decides what each layer's weights mean, in the order in which they lie in the vector."""
    return [_meaning(block) for block in blocks(network) if block.parameters != "features"]


def _meaning(block: Block) -> Json:
    activation = block.activation
    return {
        "name": block.parameters,
        "operation": block.operation,
        "inputs": [name.removesuffix(".dropped").removesuffix(".taken") for name in block.inputs],
        "units": block.units,
        "activation": activation.to_json() if isinstance(activation, Choice) else activation,
        "layer_norm": block.layer_norm,
    }


def _described(layers: list[Json]) -> str:
    """`layer1: 24 tanh, layer2: 3`."""
    return ", ".join(
        f"{layer['name']}: {layer['units']}"
        + (f" {layer['activation']}" if layer["activation"] else "")
        + (" with layer_norm" if layer["layer_norm"] else "")
        + (f" {layer['operation']} of {', '.join(layer['inputs'])}" if not layer["name"].startswith("layer") else "")
        for layer in layers
    )
