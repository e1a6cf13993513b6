"""Datasets in the store: versions of a name, ready or not, deleted when nobody needs them."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from service.errors import Conflict, NotFound
from service.store import Store

from .conftest import SHA, Fill


def test_a_name_stands_for_its_newest_version_that_is_ready(store: Store, fill: Fill) -> None:
    first, second = fill.dataset("digits"), fill.dataset("digits")
    store.create_dataset("ds_3", "digits", "csv")
    assert (first.version, second.version, store.get_dataset("ds_3").version) == (1, 2, 3)
    assert store.get_dataset("digits").id == second.id
    assert store.get_dataset(first.id).id == first.id
    store.create_dataset("ds_4", "other", "csv")
    assert store.get_dataset("other").status == "processing"  # better than none
    with pytest.raises(NotFound):
        store.get_dataset("nothing")


def test_uploads_of_one_name_at_once_get_versions_of_their_own(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda k: store.create_dataset(f"ds_{k}", "digits", "csv").version, range(16)))
    assert sorted(made) == list(range(1, 17))


def test_a_dataset_ends_its_check_once(store: Store, fill: Fill) -> None:
    ready = fill.dataset()
    assert store.fail_dataset(ready.id, {"code": "internal"}) == ready
    store.forget_dataset(ready.id)
    assert store.get_dataset(ready.id) == ready
    failed = store.create_dataset("ds_x", "x", "csv")
    store.fail_dataset(failed.id, {"code": "invalid_dataset"})
    again = store.finish_dataset(failed.id, {"rows": 1, "bytes": 1, "sha256": SHA, "columns": []})
    assert (again.status, again.rows, again.error) == ("failed", None, {"code": "invalid_dataset"})


def test_a_dataset_that_a_job_needs_is_not_deleted(store: Store, fill: Fill) -> None:
    used = fill.dataset()
    job = fill.job(dataset=used)
    with pytest.raises(Conflict, match=job.id) as refusal:
        store.delete_dataset(used.id)
    assert refusal.value.code == "dataset_in_use"
    store.request_cancel(job.id)
    assert store.delete_dataset(used.name).id == used.id
    with pytest.raises(NotFound):
        store.get_dataset(used.id)
    with pytest.raises(NotFound):
        fill.job(dataset=used)


def test_pages_show_each_dataset_once_newest_first(store: Store, fill: Fill) -> None:
    made = [fill.dataset(f"table {k}").id for k in range(5)]
    seen: list[str] = []
    after: str | None = None
    while True:
        page = store.list_datasets(2, after)
        seen += [record.id for record in page.data]
        if not page.has_more:
            break
        after = seen[-1]
    assert seen == made[::-1]
    with pytest.raises(NotFound):
        store.list_datasets(2, "ds_none")
