"""A bundle checked again: the batch that is measured, and the file in ONNX Runtime's own format."""

import msgspec
import numpy as np
import pytest
from tiny_bundles import AN_ORT_FILE, a_bundle
from tiny_models import a_run_target

from edgeopt.bundle.manifest import read_manifest
from edgeopt.pipeline.verify.check import check_ort_file, take_samples_of


@pytest.mark.parametrize(
    ("shape", "given", "taken"),
    [
        (("n", 3), (8, 3), (2, 3)),
        (("n", 3), (1, 3), (2, 3)),
        (("batch", "length"), (8, 5), (2, 5)),
        (("length", "batch", 4), (5, 8, 4), (5, 2, 4)),
        ((24, 3), (24, 3), (24, 3)),
        ((5, 5), (5, 5), (5, 5)),
        ((), (), ()),
    ],
)
def test_a_batch_has_as_many_samples_as_are_measured(shape, given, taken):
    array = np.arange(np.prod(given, dtype=int)).reshape(given)
    found = take_samples_of(array, shape, 2)
    assert found.shape == taken
    if taken == given:
        assert np.array_equal(found, array)


@pytest.mark.parametrize(
    ("made_with", "status"),
    [(AN_ORT_FILE.onnxruntime, "missed"), ("1.9.2", "missed"), ("99.0.0", "note")],
)
def test_an_ort_file_that_does_not_run_is_excused_only_on_an_older_runtime(tmp_path, made_with, status):
    bundle = a_bundle(tmp_path, ort=AN_ORT_FILE)
    (bundle / "model.ort").write_bytes(b"ORTM broken")
    manifest = read_manifest(bundle)
    manifest = msgspec.structs.replace(manifest, ort=msgspec.structs.replace(AN_ORT_FILE, onnxruntime=made_with))
    (finding,) = check_ort_file(bundle, manifest, a_run_target())
    assert (finding.name, finding.status) == ("model.ort", status)
