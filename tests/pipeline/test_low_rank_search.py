from types import SimpleNamespace

from stub_builds import a_stub_build

from edgeopt.errors import StepError
from edgeopt.pipeline.artifacts.networks import StoredNetwork
from edgeopt.pipeline.search.low_rank import low_rank_candidates, split_by_bytes
from edgeopt.records.low_rank import LowRankLayer


class DyingPool:
    """Torch processes that die during every job."""

    def do(self, job, kind):
        raise StepError("low rank", "the process ended with signal 9")


def test_layers_that_cannot_be_factorized_leave_a_note_and_do_not_end_the_build(tmp_path):
    workspace = SimpleNamespace(folder=lambda name: tmp_path, network=lambda key: tmp_path / key)
    build = a_stub_build(torch_pool=DyingPool(), workspace=workspace)
    network = StoredNetwork(
        key="cut", source="original", parameters=10, ratio=0.5, torch_score=0.9, proof_error=0.0, notes=(), seconds=1.0
    )
    candidates, reason = low_rank_candidates(build, network, "int8")
    assert candidates == []
    assert "signal 9" in reason


def test_layers_are_written_to_files_of_a_bounded_size():
    layers = [
        (LowRankLayer(weight=f"w{size}", shape=(size, 10), input_shape=(10,), stride=(), padding=(), dilation=(),
                     choices=()), None)
        for size in (10, 10, 10, 100, 10)
    ]  # fmt: skip
    parts = split_by_bytes(layers, max_bytes=1000)
    assert [[layer.shape[0] for layer, _ in part] for part in parts] == [[10, 10], [10], [100], [10]]
    assert split_by_bytes([], 1000) == []
