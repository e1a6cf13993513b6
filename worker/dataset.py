"""A table on disk -> memory-mapped arrays that workers compute on: split, fitted, transformed, cached."""

from dataclasses import dataclass

from core.preprocessing import PreprocessingSpec


@dataclass(frozen=True)
class DataSpec:
    """What a job reads, and how it is split. Everything but the two folders decides the arrays.

    `validation` and `test` are fractions of the rows that have a target; `split_by` is random, stratified or time (then
    `split_column` orders the rows: the newest are the test rows, those before them the validation rows).
    """

    dataset_folder: str
    dataset_sha256: str
    preprocessing: PreprocessingSpec
    weight_column: str | None
    validation: float
    test: float
    split_by: str
    split_column: str | None
    split_seed: int
    cache_folder: str
