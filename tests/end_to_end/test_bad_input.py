"""Bad input to a build: one paragraph says what is wrong, where, and what to do next. No file is lost."""

import pytest
from building import TASK, TESTS, edgeopt

BAD_INPUTS = {
    "a missing task": (["build", "nothing.py:task", "--target", "phone"], "nothing.py does not exist"),
    "an unknown ready task": (["build", "fashon", "--target", "phone"], "did you mean 'fashion'"),
    "an unknown target": (["build", "fashion", "--target", "fone"], "did you mean 'phone'"),
    "no target": (["build", "fashion"], "--target"),
    "a broken toml": (["build", "fashion", "--target", "broken.toml"], "broken.toml"),
    "an output folder that is a file": (["build", "fashion", "--target", "phone", "--out", "a-file"], "a-file"),
    "an output folder with foreign files": (["build", "fashion", "--target", "phone", "--out", "full"], "full"),
    "a limit that is not a number": (["build", "fashion", "--target", "phone", "--size-mb", "small"], "small"),
    "a score drop in percent": (["build", "fashion", "--target", "phone", "--max-drop", "5"], "5"),
    "an unknown device": (["build", "fashion", "--target", "phone", "--device", "usb:"], "usb"),
    "cuda on a machine without it": (["build", TASK, "--target", "car-cuda"], "CUDAExecutionProvider"),
    "--data with a task": (["build", "fashion", "--target", "phone", "--data", "x.npz"], "--data"),
    "a file that is not a model": (["build", "broken.onnx", "--target", "phone"], "broken.onnx"),
    "a task that raises": (["build", "raises.py:task", "--target", "phone"], "ZeroDivisionError"),
    "a model that returns NaN": (["build", "nan.py:task", "--target", "phone"], "not finite"),
    "--score with a task": (["build", TASK, "--target", "phone", "--score", "mae"], "score=KIND"),
    "an unknown score": (["build", "m.onnx", "--target", "phone", "--score", "acuracy"], "acuracy"),
    "a network that knows nothing": (["build", "random_net.py:task", "--target", "phone"], "like a constant answer"),
    "labels of more classes": (["build", "more.py:task", "--target", "phone"], "'output' has 4 classes"),
    "corrupted data": (["build", "fashion", "--target", "phone"], "train-images-idx3-ubyte.gz"),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_input_gives_one_paragraph_and_writes_no_result(case, tmp_path):
    arguments, text = BAD_INPUTS[case]
    (tmp_path / "broken.toml").write_text("name = \n[limits")
    (tmp_path / "broken.onnx").write_bytes(b"not a model")
    (tmp_path / "a-file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    (tmp_path / "raises.py").write_text("def task():\n    return 1 / 0\n")
    (tmp_path / "nan.py").write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(TESTS)!r})\n"
        "import tiny_task, torch, edgeopt\n"
        "def model():\n"
        "    net = tiny_task.TinyNet()\n"
        "    torch.nn.init.constant_(net.head.weight, float('nan'))\n"
        "    return net\n"
        "task = edgeopt.classification(model, tiny_task.batches(32, 0), tiny_task.batches(32, 1))\n"
    )
    head = f"import sys\nsys.path.insert(0, {str(TESTS)!r})\nimport tiny_task, torch, edgeopt\n"
    sets = "[(x, labels + {}) for x, labels in tiny_task.batches({}, 0)]"
    for name, more in (("random_net", 0), ("more", 1)):
        (tmp_path / f"{name}.py").write_text(
            f"{head}torch.manual_seed(0)\nsets = [{sets.format(more, 64)}, {sets.format(more, 512)}]\n"
            "task = edgeopt.classification(tiny_task.TinyNet(), *sets)\n"
        )
    broken = tmp_path / "data" / "fashion-mnist"
    broken.mkdir(parents=True)
    (broken / "train-images-idx3-ubyte.gz").write_bytes(b"half a file")
    variables = {"EDGEOPT_DATA": str(tmp_path / "data")} if case == "corrupted data" else {}
    done = edgeopt(tmp_path, *arguments, **variables)
    assert done.returncode == 2, done.stderr
    assert text in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "edgeopt-out").exists()
    assert (tmp_path / "full" / "thesis.txt").read_text() == "mine"
