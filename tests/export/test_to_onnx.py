import logging
import warnings

import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from onnx_running import a_network, run, some_images
from torch import nn

from edgeopt.errors import StepError
from edgeopt.export.parity import compare_arrays
from edgeopt.export.to_onnx import export

FLOAT_TOLERANCE = 1e-4  # the largest relative error of a correct export over 43 architectures
EXPORTERS = ("dynamo", "torchscript")


def write(module, path, *, exporter="torchscript", max_opset=20, max_ir=9, channels=1, **options):
    names = {"input_names": ["image"], "output_names": ["logits"], **options}
    example = (torch.from_numpy(some_images(1, channels)),)
    return export(module, example, path, max_opset=max_opset, max_ir=max_ir, exporter=exporter, **names)


def as_exported_graph(network):
    """Return a network as a graph of torch.export, as pruned networks are."""
    example = torch.from_numpy(some_images(2))
    program = torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    return program.module(check_guards=False)


class ReadsBatchSize(nn.Module):
    """Reads its own batch size, as many users' networks do."""

    def forward(self, x):
        return x.reshape(x.shape[0], 2, -1).mean(2)


@pytest.mark.parametrize("kind", ["module", "graph"])
@pytest.mark.parametrize("exporter", EXPORTERS)
def test_both_exporters_write_a_file_that_computes_the_same_at_any_batch(tmp_path, exporter, kind):
    network = a_network()
    exported = write(
        network if kind == "module" else as_exported_graph(network), tmp_path / "m.onnx", exporter=exporter
    )
    images = some_images(5)
    with torch.no_grad():
        expected = network(torch.from_numpy(images)).numpy()
    compare_arrays([expected], [run(exported.path, images)], stage="exported", tolerance=FLOAT_TOLERANCE)
    assert (exported.exporter, exported.opset, exported.ir_version) == (exporter, 18, 8)


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_the_batch_stays_dynamic_if_the_network_reads_its_own_batch_size(tmp_path, exporter):
    network = ReadsBatchSize()
    for number, module in enumerate((network, as_exported_graph(network))):
        exported = write(module, tmp_path / f"{number}.onnx", exporter=exporter)
        assert run(exported.path, some_images(5)).shape == (5, 2)


def test_the_file_has_the_names_and_a_dynamic_batch(tmp_path):
    graph = onnx.load(write(a_network(), tmp_path / "m.onnx").path).graph
    assert [value.name for value in graph.input] == ["image"]
    assert [value.name for value in graph.output] == ["logits"]
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_param


def test_the_batch_is_fixed_on_request(tmp_path):
    graph = onnx.load(write(a_network(), tmp_path / "m.onnx", axes=({},)).path).graph
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1


def test_an_old_target_gets_its_operator_set_from_torchscript(tmp_path):
    exported = write(a_network(), tmp_path / "m.onnx", max_opset=13, max_ir=7)
    assert (exported.opset, exported.ir_version) == (13, 7)


def test_dynamo_refuses_an_operator_set_below_its_own(tmp_path):
    with pytest.raises(StepError, match=r"writes operator set 18, but the target allows 17 at most.*TorchScript"):
        write(a_network(), tmp_path / "m.onnx", exporter="dynamo", max_opset=17)
    assert not list(tmp_path.iterdir())


def test_a_file_format_too_old_for_the_operator_set_is_refused(tmp_path):
    with pytest.raises(StepError, match="operator set 18 and IR 8; the target allows 20 and 7"):
        write(a_network(), tmp_path / "m.onnx", max_ir=7)


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_a_module_that_does_not_run_is_refused_with_the_exporters_reason(tmp_path, exporter):
    with pytest.raises(StepError, match=r"exporter cannot export the module: .*channels") as caught:
        write(nn.Conv2d(3, 4, 3), tmp_path / "m.onnx", exporter=exporter)
    assert caught.value.stage == "export"
    assert "Traceback" in caught.value.trace


def test_a_wrong_number_of_output_names_is_refused(tmp_path):
    with pytest.raises(StepError, match=r"the module has outputs|exporter cannot export"):
        write(a_network(), tmp_path / "m.onnx", output_names=["logits", "features"])


def test_training_flags_are_restored(tmp_path):
    network = a_network()
    network.train()
    network.head.eval()
    write(network, tmp_path / "m.onnx")
    assert network.training
    assert network.stem.training
    assert not network.head.training


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_one_file_without_metadata_is_written_and_nothing_is_printed(tmp_path, capfd, exporter):
    level = logging.getLogger("torch.onnx").level
    path = write(a_network(), tmp_path / "m.onnx", exporter=exporter).path
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger("torch.onnx").level == level
    model = onnx.load(path)
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]
    assert not model.metadata_props
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    assert not model.graph.value_info


def test_a_trace_that_may_not_generalize_is_noted(tmp_path):
    class Branches(nn.Module):
        def forward(self, x):
            return x * 2 if x.mean() > 0 else x

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exported = write(Branches(), tmp_path / "m.onnx")
    assert any("Converting a tensor to a Python boolean" in note for note in exported.notes)


def test_equal_networks_give_equal_files(tmp_path):
    first = write(a_network(), tmp_path / "a.onnx").path.read_bytes()
    assert first == write(a_network(), tmp_path / "b.onnx").path.read_bytes()


def test_constants_of_two_clips_of_one_value_stay_apart(tmp_path):
    """The exporter's optimizer gave both the same name, and the file lacked the first."""

    class TwoClips(nn.Module):
        def forward(self, x):
            y = x * 2
            first, second = (
                torch.minimum(torch.maximum(y, torch.tensor(a)), torch.tensor(b)) for a, b in ((0.0, 1.0), (-1.0, 3.0))
            )
            return first + second

    x = torch.linspace(-2, 3, 10).reshape(2, 5)
    path = tmp_path / "model.onnx"
    export(TwoClips(), (x,), path, input_names=["x"], output_names=["y"], max_opset=20, max_ir=10)
    (found,) = ReferenceEvaluator(str(path)).run(None, {"x": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), TwoClips()(x))


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_outputs_and_inputs_may_have_names_that_a_trace_gives_to_inner_values(tmp_path, exporter):
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    image = torch.from_numpy(some_images(2))
    plain = onnx.load(write(network, tmp_path / "plain.onnx", exporter=exporter).path)
    inner = [name for node in plain.graph.node for name in node.output if name != "logits"]
    names = {"input_names": [plain.graph.initializer[0].name], "output_names": [inner[0]]}
    exported = write(network, tmp_path / "m.onnx", exporter=exporter, **names)
    with torch.no_grad():
        expected = network(image).numpy()
    compare_arrays([expected], [run(exported.path, image.numpy())], stage="exported", tolerance=FLOAT_TOLERANCE)
    model = onnx.load(exported.path)
    assert [value.name for value in model.graph.output] == names["output_names"]
    assert [value.name for value in model.graph.input] == names["input_names"]
