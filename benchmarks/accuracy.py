"""The defaults' quality: `dataset` and `target` alone, beside scikit-learn, on rows that no contender has seen.

Usage: python -m benchmarks accuracy     (starts a service of its own in a temporary home; some minutes)

For each table and each of 5 seeds, a fifth of the rows is held out. The service is given the rest as an uploaded file
and a spec of two fields, and predicts the held-out rows over REST. scikit-learn's default MLP, in the scaling pipeline
its users write, and gradient boosting, for honesty, get the same rows.
"""

import statistics
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.compose import make_column_selector, make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.impute import SimpleImputer
from sklearn.metrics import accuracy_score, r2_score
from sklearn.multioutput import MultiOutputRegressor
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler
from threadpoolctl import threadpool_limits

from benchmarks.tables import TABLES, Cell, Table
from service.client import FallLine
from service.local_service import LocalService

SEEDS = range(5)
HELD_OUT = 0.2


def split(table: Table, seed: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Row indexes of the rows to learn from, and of the held-out ones."""
    order = np.random.default_rng(seed).permutation(len(table.rows))
    held = round(HELD_OUT * len(order))
    return order[held:], order[:held]


def score(table: Table, truth: Sequence[Any], predicted: Sequence[Any]) -> float:
    """Accuracy, or R^2 averaged over the targets."""
    if table.task == "classification":
        return float(accuracy_score([str(t) for t in truth], [str(p) for p in predicted]))
    return float(r2_score(np.asarray(truth, float), np.asarray(predicted, float)))


def ours(client: FallLine, table: Table, seed: int, folder: Path) -> tuple[float, dict[str, Any]]:
    """The held-out score of a job whose spec is `dataset` and `target`, and the job."""
    learn, held = split(table, seed)
    name = f"{table.name}-{seed}"
    dataset = client.datasets.upload(table.write_csv(folder / f"{name}.csv", learn), name=name)
    target: str | list[str] = table.targets[0] if len(table.targets) == 1 else list(table.targets)
    job = client.jobs.wait(client.jobs.submit({"dataset": dataset["id"], "target": target})["id"], timeout_s=300)
    if job["status"] != "succeeded":
        raise RuntimeError(f"{name}: {job['status']}: {job['error']}")
    places = [table.columns.index(t) for t in table.targets]
    features = [i for i in range(len(table.columns)) if i not in places]
    instances: list[dict[str, Cell]] = [{table.columns[i]: table.rows[r][i] for i in features} for r in held]
    version = job["model"]["version"]
    answers = client.predict(job["model"]["name"], instances, version=version)["predictions"]
    if table.task == "classification":
        return score(table, [table.rows[r][places[0]] for r in held], [a["label"] for a in answers]), job
    values = [list(a["values"].values()) if "values" in a else [a["value"]] for a in answers]
    return score(table, [[table.rows[r][p] for p in places] for r in held], values), job


def peers(table: Table, seed: int) -> dict[str, float]:
    """The held-out scores of scikit-learn's MLP and of gradient boosting, each in its users' pipeline."""
    learn, held = split(table, seed)
    frame = pd.DataFrame(table.rows, columns=list(table.columns))
    x, y = frame.drop(columns=list(table.targets)), frame[list(table.targets)]
    x = x.astype({c: float for c in x if x[c].dtype == bool})
    single = len(table.targets) == 1
    y_learn = y.iloc[learn].iloc[:, 0] if single else y.iloc[learn]
    numbers, texts = make_column_selector(dtype_include=np.number), make_column_selector(dtype_exclude=np.number)
    scaling = make_column_transformer(
        (make_pipeline(SimpleImputer(), StandardScaler()), numbers),
        (OneHotEncoder(handle_unknown="ignore", sparse_output=False), texts),
    )
    trees = make_column_transformer(
        ("passthrough", numbers),
        (OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1), texts),
    )
    if table.task == "classification":
        mlp, boosting = MLPClassifier(random_state=seed), HistGradientBoostingClassifier(random_state=seed)
    else:
        mlp, boosting = MLPRegressor(random_state=seed), HistGradientBoostingRegressor(random_state=seed)
        boosting = boosting if single else MultiOutputRegressor(boosting)
    scores = {}
    # One thread: nothing is timed here, and trees on busy cores wait for each other without end.
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore")  # the default MLP says that it has not converged; its users see that too
        for name, pipeline in (("MLP", make_pipeline(scaling, mlp)), ("boosting", make_pipeline(trees, boosting))):
            pipeline.fit(x.iloc[learn], y_learn)
            scores[name] = score(table, y.iloc[held].to_numpy().squeeze(), pipeline.predict(x.iloc[held]))
    return scores


def main(_: Sequence[str] = ()) -> int:
    """Print the table of docs/accuracy.md. Exit code 1 when a job failed."""
    columns = {"ours": "Fall Line", "MLP": "scikit-learn MLP", "boosting": "gradient boosting"}
    print(f"| table | rows | metric | {' | '.join(columns.values())} | ours - MLP, pairs |")
    print("|---|---|---|" + "---|" * (len(columns) + 1))
    with tempfile.TemporaryDirectory() as folder, LocalService() as service, FallLine(service.url) as client:
        service.wait_until_ready()
        for name, make in TABLES.items():
            table = make()
            found: dict[str, list[float]] = {key: [] for key in columns}
            for seed in SEEDS:
                value, _job = ours(client, table, seed, Path(folder))
                for key, result in {"ours": value, **peers(table, seed)}.items():
                    found[key].append(result)
            metric = "accuracy" if table.task == "classification" else "R2"
            cells = [f"{statistics.mean(v):.3f} ± {statistics.stdev(v):.3f}" for v in found.values()]
            pairs = [f"{a - b:+.3f}" for a, b in zip(found["ours"], found["MLP"], strict=True)]
            print(f"| {name} | {len(table.rows)} | {metric} | {' | '.join(cells)} | {', '.join(pairs)} |", flush=True)
    return 0
