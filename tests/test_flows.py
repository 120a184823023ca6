"""The flow is thin: what the world does is tried again, what is wrong with a study is not."""

from pathlib import Path

import pytest
from prefect.client.schemas.objects import TaskRun
from prefect.states import Failed

import flows
import flows.nightly
import flows.retrain
from medrec.errors import ScanError, WorldError
from medrec.home import Home


@pytest.mark.parametrize(
    ("error", "again"), [(WorldError("down"), True), (ScanError("bad"), False), (KeyError("x"), False)]
)
def test_only_a_world_that_is_down_is_tried_again(error: Exception, again: bool) -> None:
    state = Failed(data=error)
    run = TaskRun.model_construct()
    assert flows.nightly._world_is_down(flows.nightly.study, run, state) is again


def test_prefect_gets_a_home_and_is_told_to_call_nobody(tmp_path: Path) -> None:
    environment = flows.environment(Home(tmp_path / "home"))
    assert environment["PREFECT_HOME"] == str(tmp_path / "home" / "prefect")
    assert environment["DO_NOT_TRACK"] == "true"
    assert environment["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"


def test_what_prefect_stores_of_a_night_is_a_batch_and_case_keys() -> None:
    assert list(flows.nightly.nightly.parameters.properties) == ["batch"]
    assert list(flows.nightly.study.fn.__annotations__) == ["batch", "case", "return"]


def test_what_prefect_stores_of_a_retraining_is_a_name_and_steps() -> None:
    assert list(flows.retrain.retrain.parameters.properties) == ["run_name"]
    assert list(flows.retrain.step.fn.__annotations__) == ["run_name", "name", "return"]
