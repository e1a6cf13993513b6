"""Random networks beside PyTorch's: the same losses, predictions and gradients in float64, by its own derivatives."""

import numpy as np
import pytest

from core.network import Network, NetworkSpec, initial_parameters

torch = pytest.importorskip("torch", reason="PyTorch is not installed: `make pytorch` runs these where it is")

NETWORKS = 200
F = torch.nn.functional
ACTIVATIONS = {
    "identity": lambda x: x,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "leaky_relu": lambda x, negative_slope=0.01: F.leaky_relu(x, negative_slope),
    "elu": lambda x, alpha=1.0: F.elu(x, alpha),
    "softplus": lambda x, beta=1.0: F.softplus(x, beta, threshold=700.0),
    "silu": F.silu,
    "gelu": F.gelu,
}


def random_activation(rng):
    name = str(rng.choice(list(ACTIVATIONS)))
    number = {"leaky_relu": "negative_slope", "elu": "alpha", "softplus": "beta"}.get(name)
    return name if number is None or rng.random() < 0.5 else {"name": name, number: float(rng.uniform(0.1, 0.9))}


def random_spec(rng):
    """A network in one of the three notations, with any activation, loss and normalization."""
    loss = str(rng.choice(["cross_entropy", "binary_cross_entropy", "squared_error", "huber"]))
    outputs = 2 if loss == "binary_cross_entropy" else int(rng.integers(1, 5))
    fields = {"inputs": int(rng.integers(1, 7)), "outputs": outputs, "loss": loss, "dtype": "float64"}
    fields |= {"activation": random_activation(rng), "layer_norm": bool(rng.random() < 0.3)}
    fields["huber_delta"] = float(rng.uniform(0.2, 2))
    notation = rng.choice(["hidden", "layers", "graph"])
    if notation == "hidden":
        return NetworkSpec(hidden=tuple(int(n) for n in rng.integers(2, 9, rng.integers(0, 4))), **fields)
    if notation == "layers":
        layers = [
            {
                "units": int(rng.integers(2, 9)),
                "activation": random_activation(rng),
                "layer_norm": bool(rng.random() < 0.3),
            }
            for _ in range(rng.integers(1, 4))
        ]
        return NetworkSpec(layers=tuple(layers), **fields)
    return NetworkSpec(graph=tuple(random_graph(rng, fields["inputs"])), **fields)


def random_graph(rng, inputs):
    widths, nodes, taken = {"features": inputs}, [], set()
    for k in range(rng.integers(1, 6)):
        names, operation = list(widths), str(rng.choice(["affine", "sum", "product", "concatenate"]))
        parents = [str(rng.choice(names))]
        if operation != "affine":
            fitting = names if operation == "concatenate" else [n for n in names if widths[n] == widths[parents[0]]]
            parents += [str(rng.choice(fitting)) for _ in range(1 if operation == "product" else rng.integers(1, 3))]
        node = {"name": f"n{k}", "inputs": tuple(parents), "operation": operation}
        node |= {"units": int(rng.integers(2, 6))} if operation == "affine" else {}
        node |= {"activation": random_activation(rng)} if rng.random() < 0.5 else {}
        nodes.append(node)
        taken.update(parents)
        widths[node["name"]] = node.get("units") or (
            sum(widths[n] for n in parents) if operation == "concatenate" else widths[parents[0]]
        )
    left = [node["name"] for node in nodes if node["name"] not in taken]
    return [*nodes, {"name": "end", "inputs": tuple(left), "operation": "concatenate"}]


def activate(x, activation):
    numbers = {} if isinstance(activation, str) else dict(activation.numbers)
    return ACTIVATIONS[activation if isinstance(activation, str) else activation.name](x, **numbers)


def treat(x, p, prefix, activation, layer_norm):
    if layer_norm:
        x = F.layer_norm(x, x.shape[1:], p[f"{prefix}.gain"], p[f"{prefix}.shift"])
    return activate(x, activation)


def peer(spec, p, x):
    """The output units, by PyTorch's operations."""
    if not spec.graph:
        layers = (
            [(n, None, None) for n in spec.hidden]
            if not spec.layers
            else [(layer.units, layer.activation, layer.layer_norm) for layer in spec.layers]
        )
        for k, (_, activation, layer_norm) in enumerate(layers, start=1):
            net = x @ p[f"layer{k}.weights"] + p[f"layer{k}.bias"]
            x = treat(
                net,
                p,
                f"layer{k}",
                activation or spec.activation,
                spec.layer_norm if layer_norm is None else layer_norm,
            )
        last = f"layer{len(layers) + 1}"
        return x @ p[f"{last}.weights"] + p[f"{last}.bias"]
    values = {"features": x}
    for node in spec.graph:
        parents = [values[name] for name in node.inputs]
        if node.operation == "affine":
            net = parents[0] @ p[f"{node.name}.weights"] + p[f"{node.name}.bias"]
            values[node.name] = treat(net, p, node.name, node.activation or spec.activation, spec.layer_norm)
            continue
        combined = {
            "sum": lambda parts: sum(parts[1:], parts[0]),
            "product": lambda parts: parts[0] * parts[1],
            "concatenate": lambda parts: torch.cat(parts, dim=1),
        }[node.operation](parents)
        values[node.name] = activate(combined, node.activation or "identity")
    return values["end"] @ p["outputs.weights"] + p["outputs.bias"]


def peer_losses(spec, outputs, t):
    """A loss a row, and the predictions."""
    if spec.loss == "cross_entropy":
        return F.cross_entropy(outputs, t.long(), reduction="none"), torch.softmax(outputs, dim=1)
    if spec.loss == "binary_cross_entropy":
        p = torch.sigmoid(outputs[:, 0])
        losses = F.binary_cross_entropy_with_logits(outputs[:, 0], t.double(), reduction="none")
        return losses, torch.stack([1 - p, p], dim=1)
    if spec.loss == "huber":
        return F.huber_loss(outputs, t, reduction="none", delta=spec.huber_delta).sum(dim=1), outputs
    return 0.5 * ((outputs - t) ** 2).sum(dim=1), outputs


@pytest.mark.parametrize("seed", range(NETWORKS))
def test_loss_predictions_and_gradient(seed):
    rng = np.random.default_rng(seed)
    spec = random_spec(rng)
    rows = int(rng.integers(1, 12))
    network = Network(spec, rows)
    parameters = initial_parameters(spec, seed) + 0.1 * rng.normal(size=network.layout.size)
    x, w = rng.normal(size=(rows, spec.inputs)), rng.uniform(0, 2, rows)
    t = (
        rng.integers(0, spec.outputs, rows).astype(np.int32)
        if spec.make_loss().classes
        else rng.normal(size=(rows, spec.outputs))
    )
    gradient = np.empty_like(parameters)
    loss = network.loss_and_gradient(parameters, gradient, x, t, w)

    p = {name: torch.tensor(view, requires_grad=True) for name, view in network.layout.views(parameters).items()}
    losses, predictions = peer_losses(spec, peer(spec, p, torch.tensor(x)), torch.tensor(t))
    expected = (losses * torch.tensor(w)).sum()
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-10, abs=1e-12)
    np.testing.assert_allclose(network.predict(parameters, x), predictions.detach().numpy(), rtol=1e-10, atol=1e-12)
    found = np.concatenate([p[name].grad.numpy().ravel() for name in network.layout.names])
    assert np.abs(gradient - found).max() <= 1e-10 * max(np.abs(found).max(), 1e-3)
