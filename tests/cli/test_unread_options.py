"""An option that has no effect is refused, in a sentence that says what it is for and what to add."""

import pytest
from tiny_models import a_network

from edgeopt.cli import main


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """Run a command in a folder with a model, m.onnx, and return what it says on stderr."""
    monkeypatch.chdir(tmp_path)
    a_network(tmp_path / "m.onnx", width=16, layers=1, inputs=("N", 8))

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        stdout, stderr = capsys.readouterr()
        assert (ended.value.code, stdout) == (2, ""), stderr
        return " ".join(stderr.replace("│", " ").split())

    return run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("check", ".", "--mean", "0.5", "--size", "32", "--state", "h=hn"),
            "--mean and --size and --state would change nothing: such options say how --score MODEL.onnx reads its "
            "--data. Add these two.",
        ),
        (
            ("inspect", "my_task.py:task", "--target", "car", "--inputs", "in.npz", "--shape", "x=1x8"),
            "--target and --shape and --inputs would change nothing: such options are for a MODEL.onnx, and "
            "'my_task.py:task' is a task. Leave them out.",
        ),
        (
            ("inspect", "m.onnx", "--channels", "--batch-size", "4", "--device", "local:", "--allow-fallback", "CPU"),
            "--device and --batch-size and --allow-fallback would change nothing: such options say how the file is "
            "run, and --channels doesn't run it. Leave one or the other out.",
        ),
        (
            ("inspect", "m.onnx", "--workspace", "other"),
            "--workspace would change nothing: it has the latency table for the channels of MODEL.onnx. Add "
            "--channels, or leave it out.",
        ),
        (
            ("build", "m.onnx", "--target", "phone", "--std", "0.5", "--color", "bgr"),
            "--std and --color would change nothing: such options say how images become inputs. Add --data FOLDER.",
        ),
        (
            ("build", "m.onnx", "--target", "phone", "--ignore-label", "255"),
            "--ignore-label 255 would change nothing: a build without --data has no labels. Give data with labels, or "
            "leave it out.",
        ),
        (
            ("build", "m.onnx", "--target", "phone", "--quiet", "--progress", "json"),
            "--quiet shows no progress, and --progress json asks for it: leave one of them out.",
        ),
        (
            ("build", "m.onnx", "--target", "phone", "--no-train", "--ray", "auto"),
            "--ray trains on a cluster, and --no-train trains nothing: leave one of them out.",
        ),
    ],
)
def test_an_option_that_would_change_nothing_is_refused(refused, arguments, message):
    assert message in refused(*arguments)


def test_a_shape_is_refused_for_a_file_whose_inputs_are_not_made_up(tmp_path, refused):
    (tmp_path / "m.onnx").rename(tmp_path / "m.ort")
    found = refused("bench", "m.ort", "--target", "phone", "--device", "local:", "--shape", "x=1x8")
    assert "m.ort: --shape goes with an .onnx file, whose inputs can be checked." in found
