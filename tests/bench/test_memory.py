import platform

import pytest

from benchmarks.memory import NETWORKS, compare_mode_peaks, compare_peaks

WITHIN = 0.1  # the project's claim; the benchmark found 0.01

pytestmark = pytest.mark.skipif(platform.system() != "Linux", reason="VmHWM exists only on Linux")


@pytest.mark.parametrize("arena", [True, False])
def test_peaks_agree_with_the_memory_that_known_weights_and_activations_need(tmp_path, arena):
    found = compare_peaks("both", NETWORKS["both"], tmp_path, arena)
    assert abs(found["load_error_ratio"]) < WITHIN
    assert abs(found["run_error_ratio"]) < WITHIN
    assert found["measured"]["run_peak_bytes"] > found["measured"]["load_peak_bytes"] > found["weight_bytes"]


def test_peaks_of_every_mode_agree_with_the_memory_that_is_needed_and_mapped_weights_need_none_to_load(tmp_path):
    rows = compare_mode_peaks("both", NETWORKS["both"], tmp_path, 1)
    assert len({str(found["mode"]) for found in rows}) == 8
    for found in rows:
        for key in ("load_error_ratio", "run_error_ratio", "mapped_error_ratio"):
            assert abs(found[key]) < WITHIN, (found["mode"], key)
