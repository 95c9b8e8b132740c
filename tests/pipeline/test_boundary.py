import pytest

from edgeopt.errors import DeviceError, DeviceLostError, DivergedError, StepError, TaskError, WorkspaceError
from edgeopt.pipeline.boundary import as_failed, run_step, run_user_code


def test_an_unexpected_exception_of_a_step_names_the_stage_and_keeps_the_trace():
    with pytest.raises(StepError, match="export: ZeroDivisionError: division by zero") as caught:
        run_step("export", lambda: 1 / 0)
    assert "run_step" in caught.value.trace


def test_errors_of_edgeopt_pass_through_unchanged():
    def diverge():
        raise DivergedError("distill", "nan")

    with pytest.raises(DivergedError):
        run_step("train", diverge)


def test_an_error_in_user_code_names_the_part_and_the_line():
    with pytest.raises(TaskError, match=r"task 'mine': score\(\) failed with ZeroDivisionError.*test_boundary\.py"):
        run_user_code("mine", "score()", lambda: 1 / 0)


def test_a_failed_step_becomes_a_failed_trial_but_a_full_disk_ends_the_build():
    failed = as_failed(StepError("simplify", "crashed", "trace"))
    assert (failed.stage, failed.reason, failed.trace) == ("simplify", "crashed", "trace")
    with pytest.raises(WorkspaceError):
        as_failed(WorkspaceError("disk full"))


def test_a_dead_worker_on_the_device_is_a_failed_trial_but_a_lost_device_ends_the_build():
    assert as_failed(DeviceError("killed")).stage == "device"
    with pytest.raises(DeviceLostError):
        as_failed(DeviceLostError("gone"))
