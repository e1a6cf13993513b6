"""Tables for benchmarks and system tests: scikit-learn's small real ones, and a mixed one made here.

The mixed table has what the others lack: text columns, gaps, a boolean, and two numeric targets.
"""

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn import datasets

Cell = float | int | str | bool | None


@dataclass(frozen=True)
class Table:
    """Rows of cells under named columns. A None cell is a gap. `targets` name the columns to predict."""

    name: str
    columns: tuple[str, ...]
    rows: list[list[Cell]]
    targets: tuple[str, ...]
    task: str  # classification or regression

    def write_csv(self, path: Path, which: np.ndarray[Any, Any] | None = None) -> Path:
        """Write all rows, or those that the index array `which` names, and return the path."""
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(self.columns)
            chosen = self.rows if which is None else [self.rows[i] for i in which]
            writer.writerows([["" if cell is None else cell for cell in row] for row in chosen])
        return path


def _bundled(name: str, load: Callable[[], Any], task: str, text_labels: bool = False) -> Table:
    bunch = load()
    names = [f"p{i}" for i in range(64)] if name == "digits" else [str(n) for n in bunch.feature_names]
    target = "label" if task == "classification" else "progression"
    labels = [str(bunch.target_names[t]) for t in bunch.target] if text_labels else bunch.target.tolist()
    rows = [[*features, label] for features, label in zip(bunch.data.tolist(), labels, strict=True)]
    return Table(name, (*names, target), rows, (target,), task)


def mixed(rows: int = 1200, seed: int = 7) -> Table:
    """Flats with rent and heating cost: numbers with gaps, text with gaps and a rare category, a boolean."""
    rng = np.random.default_rng(seed)
    cities = rng.choice(["Bern", "Basel", "Zürich", "Chur", "Sion"], rows, p=[0.3, 0.25, 0.25, 0.18, 0.02])
    heating = rng.choice(["gas", "heat pump", "wood"], rows, p=[0.5, 0.35, 0.15])
    area, year, balcony = rng.gamma(9, 9, rows), rng.integers(1900, 2024, rows), rng.random(rows) < 0.4
    level = {"Bern": 1.0, "Basel": 0.95, "Zürich": 1.4, "Chur": 0.8, "Sion": 0.7}
    unit = {"gas": 1.3, "heat pump": 0.6, "wood": 1.0}
    rent = area * 21 * np.array([level[c] for c in cities]) * (1 + (year - 1900) / 500) + 120 * balcony
    cost = area * 12 * np.array([unit[h] for h in heating]) * np.where(year < 1980, 1.6, 1.0)
    rent, cost = rent + rng.normal(0, 90, rows), cost + rng.normal(0, 60, rows)
    gap = rng.random((rows, 4)) < 0.06
    body: list[list[Cell]] = [
        [
            None if gap[i, 0] else round(float(area[i]), 1),
            None if gap[i, 1] else int(year[i]),
            None if gap[i, 2] else str(cities[i]),
            None if gap[i, 3] else str(heating[i]),
            bool(balcony[i]),
            round(float(rent[i]), 2),
            round(float(cost[i]), 2),
        ]
        for i in range(rows)
    ]
    columns = ("area", "year", "city", "heating", "balcony", "rent", "heating_cost")
    return Table("mixed", columns, body, ("rent", "heating_cost"), "regression")


TABLES: dict[str, Callable[[], Table]] = {
    "digits": lambda: _bundled("digits", datasets.load_digits, "classification"),
    "iris": lambda: _bundled("iris", datasets.load_iris, "classification", text_labels=True),
    "wine": lambda: _bundled("wine", datasets.load_wine, "classification"),
    "breast_cancer": lambda: _bundled("breast_cancer", datasets.load_breast_cancer, "classification", text_labels=True),
    "diabetes": lambda: _bundled("diabetes", datasets.load_diabetes, "regression"),
    "mixed": mixed,
}
