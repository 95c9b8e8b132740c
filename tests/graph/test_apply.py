import onnx
import pytest
from onnx_running import a_network, write

from edgeopt.errors import StepError
from edgeopt.graph.apply import apply_steps
from edgeopt.graph.compatibility import check_compatibility, find_incompatibility
from edgeopt.records.recipe import Compact, FlushDenormals, Simplify

LIMITS = {"calibration": None, "max_opset": 20, "max_ir": 9}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write(a_network(), tmp_path_factory.mktemp("apply") / "source.onnx")


def test_every_stage_keeps_its_file_and_the_last_is_the_target(tmp_path, source):
    results = apply_steps((FlushDenormals(), Compact()), source, tmp_path / "out.onnx", **LIMITS)
    assert [result.path.name for result in results] == ["out.0-flush-denormals.onnx", "out.onnx"]
    assert all(result.path.is_file() for result in results)


def test_without_steps_the_file_is_copied(tmp_path, source):
    assert apply_steps((), source, tmp_path / "out.onnx", **LIMITS) == []
    assert (tmp_path / "out.onnx").read_bytes() == source.read_bytes()


def test_a_file_that_is_too_new_for_the_target_is_refused(tmp_path, source):
    with pytest.raises(StepError, match=r"compact: out\.onnx has operator set 18 and IR 8; the target loads at most"):
        apply_steps((Compact(),), source, tmp_path / "out.onnx", **{**LIMITS, "max_opset": 17})


def test_the_operators_that_need_a_newer_ir_are_named():
    trees = onnx.helper.make_node("TreeEnsemble", ["x"], ["y"], domain="ai.onnx.ml")
    value = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 1]) for name in ("x", "y")]
    graph = onnx.helper.make_graph([trees], "g", value[:1], value[1:])
    opsets = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("ai.onnx.ml", 5)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    assert find_incompatibility(model, 20, 9) == (
        "has operator set 20 and IR 10; the target loads at most 20 and 9. It needs the latter for TreeEnsemble "
        "(ai.onnx.ml 5). Raise max_opset, max_ir and min_onnxruntime in the profile."
    )


def test_a_missing_file_is_named_in_the_error(tmp_path):
    with pytest.raises(StepError, match=r"absent\.onnx cannot be read"):
        apply_steps((Compact(),), tmp_path / "absent.onnx", tmp_path / "out.onnx", **LIMITS)


def test_a_broken_file_gives_the_same_error_from_a_subprocess(tmp_path):
    (tmp_path / "broken.onnx").write_bytes(b"\xff" * 64)
    with pytest.raises(StepError, match=r"simplify: .*broken\.onnx cannot be read as an ONNX model"):
        apply_steps((Simplify(),), tmp_path / "broken.onnx", tmp_path / "out.onnx", **LIMITS)


def test_operators_of_another_domain_are_refused(tmp_path, source):
    model = onnx.load(source)
    model.graph.node[0].domain = "my.company"
    model.opset_import.append(onnx.helper.make_opsetid("my.company", 1))
    onnx.save(model, tmp_path / "foreign.onnx")
    with pytest.raises(StepError, match=r"operators that ONNX Runtime does not have: my\.company\.Conv"):
        check_compatibility(tmp_path / "foreign.onnx", 20, 9)


def test_weights_in_another_file_are_refused(tmp_path, source):
    model = onnx.load(source)
    onnx.save(model, tmp_path / "outside.onnx", save_as_external_data=True, size_threshold=0)
    with pytest.raises(StepError, match=r"keeps \d+ tensors in other files"):
        check_compatibility(tmp_path / "outside.onnx", 20, 9)


def test_an_invalid_graph_is_refused(tmp_path, source):
    model = onnx.load(source)
    model.graph.node[0].input[0] = "nothing"
    onnx.save(model, tmp_path / "invalid.onnx")
    with pytest.raises(StepError, match=r"invalid\.onnx is not valid"):
        check_compatibility(tmp_path / "invalid.onnx", 20, 9)


def test_a_file_that_only_onnx_checker_finds_fault_with_is_taken(tmp_path, source):
    model = onnx.load(source)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.ClearField("shape")
    model.ir_version = 3  # in which weights are inputs too
    content = model.SerializeToString()
    assert find_incompatibility(model, 20, 9) is None
    assert model.SerializeToString() == content
