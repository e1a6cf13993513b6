"""What `fallline serve` is shown to do, shown of compose.yaml's commands: `make faults`.

Left out of tests/system is what is not a service's own: test_supervisor.py and test_demo.py (what `fallline serve` adds
to the parts: its start, Ctrl-C, one port, one home), test_cluster.py and test_nodes.py (drivers of a Ray of their own),
servers of MLflow's that a test starts and stops itself, a job that does not fit (into three slots) and a home's end.
"""

# What is imported is for pytest to find.
# ruff: noqa: F401
import pytest

from ..faults.conftest import THOROUGH
from ..system.test_checkpoints import (
    test_a_paused_job_goes_on_where_it_was,
    test_so_does_one_that_exchanges_objects,
    undisturbed,
)
from ..system.test_controller import (
    test_a_paused_job_gives_its_slots_back_and_goes_on_where_it_was,
    test_policies_deploy_and_a_move_in_mlflow_is_followed,
    test_without_a_model_a_job_is_tracked_and_not_registered,
    tracking,
    weights,
)
from ..system.test_networks import dataset, test_a_network_is_trained_kept_and_answers
from ..system.test_readme import test_the_python_lines_run
from ..system.test_scale import test_a_job_goes_on_with_the_workers_that_are_asked_for
from ..system.test_tracking import (
    registered,
    registration,
    test_a_model_that_was_linked_before_a_crash_is_registered_after_it,
    test_a_point_that_is_not_finite_is_kept_as_such,
    test_a_run_ends_as_its_job_did,
    test_a_run_is_made_once_and_holds_all_of_the_spec,
    test_a_version_is_registered_once,
    test_an_experiment_and_a_run_deleted_by_hand_come_back,
    test_anybodys_mlflow_predicts_what_the_service_does,
    test_points_sent_twice_are_there_once_in_more_than_one_batch,
    test_the_alias_moves_and_moves_by_hand_are_seen,
    test_the_artifact_holds_no_pickle_and_the_files_themselves,
    test_the_service_runs_nothing_that_an_artifact_ships,
    test_what_mlflow_refuses_is_told_from_an_outage,
    url,
)
from ..system.test_warm_start import (
    paused,
    source,
    test_a_checkpoint_of_a_job_that_has_no_model_is_a_source,
    test_a_killed_trainer_changes_nothing,
    test_a_source_that_is_gone_before_the_job_starts_is_not_missed,
    test_any_number_of_workers_gives_the_same_weights,
    test_it_goes_on_where_the_source_has_ended,
    test_new_rows_of_the_same_columns_train_it_on,
    test_what_cannot_be_a_source_is_refused_at_submission,
)

pytestmark = [pytest.mark.system, THOROUGH]
