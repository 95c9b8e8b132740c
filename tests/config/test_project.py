"""``edgeopt.toml``: found in a folder above, with paths relative to it; mistakes are named."""

import pytest

from edgeopt.config.limits import LimitOptions
from edgeopt.config.project import Project, load_project, project_folder
from edgeopt.errors import ConfigError


def write(folder, text):
    (folder / "edgeopt.toml").write_text(text, encoding="utf-8")


def test_without_a_file_every_key_is_none(tmp_path):
    assert load_project(tmp_path) == Project()
    assert project_folder(tmp_path) == tmp_path


def test_task_target_and_limits_are_read(tmp_path):
    write(tmp_path, 'task = "fashion"\ntarget = "phone"\n[limits]\nlatency_ms = 5\nmax_drop = "none"\n')
    limits = LimitOptions(latency_ms=5.0, max_drop="none")
    assert load_project(tmp_path) == Project(task="fashion", target="phone", limits=limits)


def test_several_targets_have_limits_and_devices_of_their_own(tmp_path):
    write(
        tmp_path,
        'target = ["car", "targets/mine.toml"]\n[limits]\nlatency_ms = 5\nsize_mb = 1\n'
        '[targets.car]\ndevice = "ssh://car"\n[targets.car.limits]\nlatency_ms = 2\nmax_drop = "none"\n',
    )
    project = load_project(tmp_path)
    assert project.target_names == ("car", str(tmp_path / "targets" / "mine.toml"))
    assert project.targets["car"].device == "ssh://car"
    assert project.limits_of("car") == LimitOptions(latency_ms=2.0, size_mb=1.0, max_drop="none")
    assert project.limits_of("mine") == LimitOptions(latency_ms=5.0, size_mb=1.0)
    write(tmp_path, "[targets.car.limits]\nlatency_ms = 2\n")
    assert load_project(tmp_path).limits_of("car") == LimitOptions(latency_ms=2.0)
    assert load_project(tmp_path).limits_of("phone") is None


def test_channels_to_keep_are_read(tmp_path):
    write(tmp_path, 'keep = ["head.*"]\n[min_widths]\n"stem.*" = 16\n')
    project = load_project(tmp_path)
    assert project.keep == ("head.*",)
    assert project.min_widths == {"stem.*": 16}


def test_rows_to_drop_are_read(tmp_path):
    write(tmp_path, "drop_unseen_rows = true\n[unknown_ids]\ntokens = 100\n")
    project = load_project(tmp_path)
    assert (project.drop_unseen_rows, project.unknown_ids) == (True, {"tokens": 100})


def test_the_nearest_file_above_counts_and_its_paths_are_relative_to_it(tmp_path):
    write(tmp_path, 'task = "my_task.py:task"\ntarget = "targets/mine.toml"\n')
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    assert project_folder(deep) == tmp_path
    project = load_project(deep)
    assert project.task == f"{tmp_path / 'my_task.py'}:task"
    assert project.target == str(tmp_path / "targets" / "mine.toml")


@pytest.mark.parametrize("task", ["fashion", "package.module:name"])
def test_a_task_that_is_not_a_file_is_not_changed(tmp_path, task):
    write(tmp_path, f'task = "{task}"\n')
    assert load_project(tmp_path).task == task


def test_a_model_file_is_relative_to_the_project(tmp_path):
    write(tmp_path, 'task = "models/net.onnx"\n')
    assert load_project(tmp_path).task == str(tmp_path / "models" / "net.onnx")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('[targets]\ncar = "x"\n', r"targets\.car is 'x'; expected a table, \[targets\.car\]"),
        ("[targets.car]\nspeed = 1\n", r"unknown key 'speed' in \[targets\.car\]"),
        ("[targets.car.limits]\nlatency_ms = -1\n", r"\[targets\.car\.limits\]: latency_ms = -1 is not above zero"),
        ("target = 3\n", r"target is 3, a whole number; expected text in quotes or a list"),
        ('tsak = "fashion"', r"edgeopt\.toml: unknown key 'tsak' at the top level \(did you mean 'task'\?\)"),
        ("[limits]\nlatency = 5", r"unknown key 'latency' in \[limits\] \(did you mean 'latency_ms'\?\)"),
        ('[limits]\nlatency_ms = "fast"', r"latency_ms in \[limits\] is 'fast', text; expected a number or 'none'"),
        ("[limits]\nsize_mb = 0", r"\[limits\]: size_mb = 0 is not above zero"),
        ("limits = 5", r"limits is 5, a whole number; expected a table"),
        ('keep = "head"', r"keep is 'head', text; expected a list, each entry text in quotes"),
        ('[min_widths]\nstem = "8"', r"min_widths is {'stem': '8'}, a table; expected a table, each value a whole num"),
        ("task = fashion", r"not valid TOML: .*line 1"),
    ],
)
def test_a_mistake_is_refused_with_its_table_and_key(tmp_path, text, problem):
    write(tmp_path, text)
    with pytest.raises(ConfigError, match=problem):
        load_project(tmp_path)
