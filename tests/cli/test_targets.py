"""``edgeopt targets``, ``init`` and ``doctor``, in the process and in an empty folder."""

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

from edgeopt.cli import group
from edgeopt.cli.check import command as check
from edgeopt.config.profiles import load_profile
from edgeopt.config.project import load_project
from edgeopt.errors import ConfigError, InputError, WorkspaceError
from edgeopt.records.codec import from_json
from edgeopt.records.profile import Profile

LEARNED = 0.9  # accuracy of the example's network, which guesses 0.5 untrained


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(group, arguments, catch_exceptions=False).stdout


def test_list_shows_each_target_with_its_limits(folder):
    text = run("targets", "list")
    assert text == run("targets")
    assert "phone        a phone's big core" in text
    assert "p90 ≤ 33 ms · memory ≤ 100 MB · file ≤ 20 MB · score drop ≤ 0.01" in text
    assert "p99 ≤ 50 ms for a batch of 8 · ≥ 160 samples/s" in text


def test_list_says_that_the_runtime_counts_if_a_target_states_its_size(folder):
    run("targets", "new", "mine")
    path = folder / "targets" / "mine.toml"
    path.write_text(path.read_text().replace("# runtime_size_bytes = 2_500_000", "runtime_size_bytes = 2_500_000"))
    assert "memory ≤ 100 MB · file with the runtime's 2.5 MB ≤ 20 MB" in run("targets", "list")


def test_list_shows_the_calibration_of_each_calibrated_target(folder):
    assert "calibrated" not in run("targets", "list")
    run("targets", "new", "mine")
    for name in ("car", "mine"):
        (folder / "targets" / f"{name}.calibration.json").touch()
    lines = [line.strip() for line in run("targets", "list").splitlines() if "calibrated" in line]
    assert lines == [f"calibrated: {folder / 'targets' / name}.calibration.json" for name in ("car", "mine")]


def test_list_as_json_holds_the_profiles(folder):
    profiles = json.loads(run("targets", "list", "--json"))
    assert [profile["name"] for profile in profiles] == ["car", "car-cuda", "phone", "server", "server-cuda"]
    assert from_json(json.dumps(profiles[2]), Profile) == load_profile("phone")


def test_show_prints_the_file_with_its_reasons_or_only_the_values(folder):
    assert "threads = 1  # one big core" in run("targets", "show", "phone")
    assert from_json(run("targets", "show", "phone", "--json"), Profile) == load_profile("phone")


def test_new_copies_a_target_under_another_name(folder):
    text = run("targets", "new", "my-car", "--from", "car")
    assert text.endswith("run `edgeopt build --target my-car`\n")
    made, car = load_profile("my-car"), load_profile("car")
    assert (made.name, made.limits, made.timing) == ("my-car", car.limits, car.timing)
    assert run("targets", "show", "my-car").startswith("# Made from 'car'. `edgeopt build --target my-car`")
    assert str(folder / "targets" / "my-car.toml") in run("targets", "list")


@pytest.mark.parametrize("out", ["deep/er", "deep/er/mine.toml"])
def test_new_writes_to_the_given_path(folder, out):
    assert run("targets", "new", "mine", "--out", out).endswith("run `edgeopt build --target deep/er/mine.toml`\n")
    assert load_profile("deep/er/mine.toml").name == "mine"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["Big Phone"], "can't be a target's name"),
        (["phone"], "'phone' is a target that edgeopt ships"),
        (["mine", "--out", "other.toml"], "must be called mine.toml"),
        (["other", "--from", "fone"], "did you mean 'phone'"),
        (["mine"], "already exists and was not changed"),
    ],
)
def test_new_refuses_a_name_that_cannot_be_used(folder, arguments, problem):
    (folder / "targets").mkdir()
    (folder / "targets" / "mine.toml").write_text("mine")
    with pytest.raises(ConfigError, match=problem):
        run("targets", "new", *arguments)
    assert [path.read_text() for path in folder.rglob("*.toml")] == ["mine"]


def test_new_reports_a_path_that_cannot_be_written(folder):
    (folder / "file").write_text("")
    with pytest.raises(WorkspaceError, match=r"file/mine\.toml cannot be written: "):
        run("targets", "new", "mine", "--out", "file/mine.toml")


def test_init_writes_a_task_that_runs_and_a_project_that_names_it(folder):
    assert "run `cd app && edgeopt build --quick`" in run("init", "app")
    project = load_project(folder / "app")
    assert (project.task, project.target) == (f"{folder / 'app' / 'my_task.py'}:task", "phone")
    code = (
        "import torch; torch.set_num_threads(1)\n"
        "from edgeopt.task import load_task\n"
        f"task = load_task({project.task!r})\n"
        "pairs = [(task.model(*inputs).detach().numpy(), targets.numpy()) for inputs, targets in task.eval_batches()]\n"
        "print(task.name, task.score(pairs))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    name, score = done.stdout.split()
    assert name == "rows-and-columns"
    assert float(score) > LEARNED


def test_init_writes_a_workflow_that_checks_pull_requests(folder):
    yaml = pytest.importorskip("yaml")
    assert "commit it together with the bundle" in run("init", "--ci")
    workflow = yaml.safe_load((folder / ".github" / "workflows" / "edgeopt.yml").read_text())
    steps = workflow["jobs"]["check"]["steps"]
    (script,) = (step["run"] for step in steps if step.get("name") == "check")
    assert subprocess.run(["bash", "-n", "-c", script], check=False).returncode == 0
    arguments = script.splitlines()[-1].replace('"${against[@]}"', "--against old --max-regression 5").split()[1:]
    options = {option for parameter in check.params for option in parameter.opts}
    assert {word for word in arguments if word.startswith("--")} <= options
    with pytest.raises(InputError, match="already exists"):
        run("init", "--ci")


def test_init_overwrites_nothing(folder):
    (folder / "edgeopt.toml").write_text("mine")
    with pytest.raises(InputError, match=r"edgeopt\.toml already exists and was not changed"):
        run("init")
    assert [path.name for path in folder.iterdir()] == ["edgeopt.toml"]
    assert (folder / "edgeopt.toml").read_text() == "mine"


def test_doctor_describes_this_machine(folder):
    found = json.loads(run("doctor", "--json"))
    assert found["packages"]["torch"]
    assert found["environment"]["cores"] >= 1
    assert "CPUExecutionProvider" in found["providers"]
    assert not [finding for finding in found["findings"] if finding["kind"] == "missing"]
    text = run("doctor")
    assert found["environment"]["processor"] in text
    assert text.endswith("edgeopt has everything that it needs\n")


def test_a_stand_in_cannot_calibrate_the_target_that_it_stands_in_for(folder):
    with pytest.raises(ConfigError, match="only stands in for 'phone': give the device itself"):
        run("targets", "calibrate", "phone")


def test_an_emulator_has_no_times_to_calibrate_with(folder):
    with pytest.raises(ConfigError, match="emulates a processor"):
        run("targets", "calibrate", "phone", "--device", "qemu:aarch64")


def test_an_estimate_and_a_device_exclude_each_other(folder):
    (folder / "m.onnx").write_bytes(b"")
    with pytest.raises(ConfigError, match="leave --device out"):
        run("bench", "m.onnx", "--target", "phone", "--estimate", "--device", "ssh://pi")
