"""Decision 0001: plain top-level packages are ours alone in this environment."""

from importlib.metadata import packages_distributions

import pytest


@pytest.mark.parametrize("package", ["core", "worker", "service"])
def test_no_other_distribution_provides_our_packages(package: str) -> None:
    assert set(packages_distributions().get(package, [])) <= {"fallline"}


def test_the_model_artifacts_package_name_is_nobodys() -> None:
    assert "fallline_core_1" not in packages_distributions()
