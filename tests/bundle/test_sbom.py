"""``sbom.json``: it is what CycloneDX's schema allows, and says what the model is and what made it."""

import hashlib
import json

import msgspec
import pytest
from builders import a_choice
from tiny_bundles import AN_ORIGIN, AN_ORT_FILE, a_bundle, a_golden

from edgeopt.bundle.manifest import FileEntry, read_manifest
from edgeopt.bundle.sbom import describe_parts
from edgeopt.bundle.write import write_bundle

TIME = "2026-11-30T10:00:00+00:00"


@pytest.fixture
def out(tmp_path, model):
    """A bundle whose task has a licence."""
    versions = {"edgeopt": "0.1.0", "torch": "2.13.0+cpu", "Some_Package": "1"}
    origin = msgspec.structs.replace(AN_ORIGIN, licence="photos: CC BY 4.0", versions=versions, time=TIME)
    golden = a_golden({}, {})
    write_bundle(tmp_path / "out", a_choice(), model=model, golden=golden, origin=origin)
    return tmp_path / "out"


def sbom_of(bundle):
    return json.loads((bundle / "sbom.json").read_text())


def assert_valid(text):
    validation = pytest.importorskip("cyclonedx.validation.json", reason="the schema of CycloneDX is not installed")
    pytest.importorskip("jsonschema")
    from cyclonedx.schema import SchemaVersion

    assert validation.JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None


def test_it_is_valid_by_the_schema(out):
    assert_valid((out / "sbom.json").read_text())


def test_it_is_valid_without_what_a_task_need_not_say(out):
    manifest = msgspec.structs.replace(read_manifest(out), licence="")
    document = describe_parts(manifest, "")
    assert_valid(json.dumps(document))
    assert "timestamp" not in document["metadata"]
    assert "licenses" not in document["metadata"]["component"]


def test_the_model_is_a_component_with_its_hash_licence_and_target(out):
    metadata = sbom_of(out)["metadata"]
    model = metadata["component"]
    assert model["type"] == "machine-learning-model"
    assert model["name"] == "fashion"
    sha256 = hashlib.sha256((out / "model.onnx").read_bytes()).hexdigest()
    assert model["hashes"] == [{"alg": "SHA-256", "content": sha256}]
    assert model["licenses"] == [{"license": {"name": "photos: CC BY 4.0"}}]
    properties = {entry["name"]: entry["value"] for entry in model["properties"]}
    assert (properties["edgeopt:target"], properties["edgeopt:min_onnxruntime"]) == ("phone", "1.17.0")
    assert metadata["timestamp"] == TIME
    assert [tool["name"] for tool in metadata["tools"]["components"]] == ["edgeopt"]


def test_the_packages_that_made_it_are_components_that_do_not_ship(out):
    packages = {entry["purl"]: entry for entry in sbom_of(out)["components"]}
    assert list(packages) == ["pkg:pypi/some-package@1", "pkg:pypi/edgeopt@0.1.0", "pkg:pypi/torch@2.13.0%2Bcpu"]
    assert {entry["scope"] for entry in packages.values()} == {"excluded"}
    assert packages["pkg:pypi/torch@2.13.0%2Bcpu"]["version"] == "2.13.0+cpu"


def test_large_weights_in_a_file_of_their_own_are_a_part_of_the_model(out):
    manifest = read_manifest(out)
    weights = FileEntry(sha256="ab" * 32, size_bytes=1)
    document = describe_parts(msgspec.structs.replace(manifest, files={**manifest.files, "12.data": weights}), TIME)
    assert_valid(json.dumps(document))
    assert document["metadata"]["component"]["components"] == [
        {"type": "file", "name": "12.data", "hashes": [{"alg": "SHA-256", "content": "ab" * 32}]}
    ]


def test_the_file_in_the_runtimes_own_format_is_a_part_of_the_model(tmp_path):
    bundle = a_bundle(tmp_path, ort=AN_ORT_FILE)
    assert_valid((bundle / "sbom.json").read_text())
    (part,) = sbom_of(bundle)["metadata"]["component"]["components"]
    sha256 = hashlib.sha256((bundle / "model.ort").read_bytes()).hexdigest()
    assert part == {"type": "file", "name": "model.ort", "hashes": [{"alg": "SHA-256", "content": sha256}]}


@pytest.mark.parametrize(
    ("task", "name"),
    [
        ("/home/a/secret/model.onnx", "model.onnx"),
        ("../tasks/mine.py:task", "mine.py:task"),
        ("package.module:task", "package.module:task"),
        ("fashion", "fashion"),
    ],
)
def test_the_name_of_the_model_has_no_folder(out, task, name):
    document = describe_parts(msgspec.structs.replace(read_manifest(out), task=task), TIME)
    assert document["metadata"]["component"]["name"] == name
