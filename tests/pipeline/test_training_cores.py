"""What shares the cores with the making of candidates."""

import time
from types import SimpleNamespace

import pytest

from edgeopt.errors import TaskError
from edgeopt.pipeline.search.training_cores import in_parallel


def test_what_is_done_meanwhile_is_done_before_a_round_ends_and_its_errors_count():
    done = []

    def slow():
        time.sleep(0.2)
        done.append("meanwhile")

    pool = SimpleNamespace(count=2, share_cores=lambda _: None, close=lambda: done.append("closed"))
    build = SimpleNamespace(torch_pool=pool)
    assert in_parallel(build, str, [1], slow) == ["1"]
    assert done == ["meanwhile"]

    def fails():
        raise TaskError("no labels")

    with pytest.raises(TaskError, match="no labels"):
        in_parallel(build, str, [1], fails)
    assert done == ["meanwhile", "closed"]
