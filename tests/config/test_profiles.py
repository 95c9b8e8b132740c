"""Target profiles: the shipped files, and every mistake in a user's own."""

import re
import tomllib
from pathlib import Path

import pytest

from edgeopt.config.profiles import find_profile, list_profiles, load_profile, read_profile, shipped_folder
from edgeopt.errors import ConfigError
from edgeopt.records.profile import Profile

SIZE_METRIC = 'size_metric = "file"'
SHIPPED = ("car", "car-cuda", "phone", "server", "server-cuda")

# The highest opset and IR version that each ONNX Runtime loads, tried with those releases.
MAX_OPSET_AND_IR = {"1.17.0": (20, 9), "1.18.0": (21, 10)}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return an empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def a_file(folder: Path, name: str = "mine", **replaced: str) -> Path:
    """Write a copy of the phone's file with some lines ``key = ...`` replaced, or removed by an empty text."""
    text = (shipped_folder() / "phone.toml").read_text(encoding="utf-8")
    for key, line in {"name": f'name = "{name}"', **replaced}.items():
        text, count = re.subn(rf"(?m)^{key} = .*$", line, text)
        assert count == 1, key
    path = folder / "targets" / f"{name}.toml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_five_targets_are_shipped(folder):
    assert tuple(profile.name for profile, _ in list_profiles()) == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_target_gives_the_reason_for_each_value_on_its_line(name):
    text = (shipped_folder() / f"{name}.toml").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if re.match(r"\w+ = ", line)]
    assert lines
    assert [line for line in lines if not re.search(r"  # .{10,}", line)] == []


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_target_allows_no_more_than_its_oldest_runtime_loads(name):
    profile = load_profile(name)
    assert (profile.max_opset, profile.max_ir) == MAX_OPSET_AND_IR[profile.min_onnxruntime]


@pytest.mark.parametrize("name", SHIPPED)
def test_every_target_except_a_server_uses_a_stand_in(name):
    assert load_profile(name).stand_in == (not name.startswith("server"))


@pytest.mark.parametrize("name", SHIPPED)
def test_cuda_comes_first_only_in_the_cuda_targets(name):
    first = load_profile(name).providers[0]
    assert first == ("CUDAExecutionProvider" if name.endswith("-cuda") else "CPUExecutionProvider")


def test_only_the_word_none_waives_a_limit(folder):
    assert read_profile(a_file(folder, max_latency_ms='max_latency_ms = "none"')).limits.max_latency_ms is None
    with pytest.raises(
        ConfigError, match=r"max_latency_ms in \[limits\] is 'never', text; expected a number or 'none'"
    ):
        read_profile(a_file(folder, max_latency_ms='max_latency_ms = "never"'))


def test_the_size_of_the_runtime_may_be_stated(folder):
    assert read_profile(a_file(folder)).limits.runtime_size_bytes is None
    stated = a_file(folder, size_metric=f"{SIZE_METRIC}\nruntime_size_bytes = 2_500_000")
    assert read_profile(stated).limits.runtime_size_bytes == 2_500_000


def test_a_missing_limit_is_refused_with_the_way_to_waive_it(folder):
    with pytest.raises(
        ConfigError, match=r"mine\.toml: 'max_size_bytes' is missing in \[limits\].*= \"none\" to waive"
    ):
        read_profile(a_file(folder, max_size_bytes=""))


def test_a_missing_key_and_a_missing_table_are_named(folder):
    with pytest.raises(ConfigError, match="'threads' is missing at the top level: give a whole number"):
        read_profile(a_file(folder, threads=""))
    path = a_file(folder)
    path.write_text(path.read_text(encoding="utf-8").partition("\n[limits]")[0], encoding="utf-8")
    with pytest.raises(ConfigError, match="'limits' is missing at the top level: give a table"):
        read_profile(path)


def test_an_unknown_key_is_refused_with_the_nearest_known_one_the_table_and_the_file(folder):
    with pytest.raises(
        ConfigError, match=r"mine\.toml: unknown key 'thread' at the top level \(did you mean 'threads'"
    ):
        read_profile(a_file(folder, threads="thread = 1"))
    with pytest.raises(ConfigError, match=r"unknown key 'min_run' in \[timing\] \(did you mean 'min_runs'\?\)"):
        read_profile(a_file(folder, min_runs="min_run = 5"))


@pytest.mark.parametrize(
    ("key", "line", "problem"),
    [
        ("threads", 'threads = "one"', "threads is 'one', text; expected a whole number"),
        ("threads", "threads = 1.5", "threads is 1.5, a number; expected a whole number"),
        ("threads", "threads = true", "threads is True, a truth value; expected a whole number"),
        ("stand_in", "stand_in = 1", "stand_in is 1, a whole number; expected true or false"),
        ("providers", 'providers = "CPUExecutionProvider"', "expected a list, each entry text in quotes"),
        ("precisions", 'precisions = ["int4", "fp32"]', "expected a list, each entry one of 'fp32', 'fp16', 'int8'"),
        ("size_metric", 'size_metric = "zip"', r"size_metric in \[limits\] is 'zip', text; expected one of 'file'"),
        (
            "size_metric",
            f"{SIZE_METRIC}\nruntime_size_bytes = 2.5",
            "runtime_size_bytes in .* is 2.5, a number; exp",
        ),
        ("size_metric", f'{SIZE_METRIC}\nruntime_size_bytes = "2 MB"', "is '2 MB', text; expected a whole number"),
        ("size_metric", f"{SIZE_METRIC}\nruntime_size_bytes = true", "is True, a truth value; expected a whole number"),
    ],
)
def test_a_wrong_type_is_refused_with_the_key_the_value_and_the_expected_type(folder, key, line, problem):
    with pytest.raises(ConfigError, match=problem):
        read_profile(a_file(folder, **{key: line}))


@pytest.mark.parametrize(
    ("key", "line", "problem"),
    [
        ("threads", "threads = 0", "threads is 0"),
        ("device", 'device = "phone"', "is not a URI"),
        ("providers", "providers = []", "providers is empty"),
        ("precisions", 'precisions = ["int8"]', "lacks 'fp32'"),
        ("channel_step", "channel_step = 0", "channel_step is 0"),
        ("min_onnxruntime", 'min_onnxruntime = "new"', "not a version such as"),
        ("affinity", "affinity = [-1]", "affinity has core -1; cores are numbered from 0"),
        ("warmup_seconds", "warmup_seconds = -1.0", "warmup_seconds is -1.0; it has to be 0 or more"),
        ("max_seconds", "max_seconds = 0.5", "max_seconds is below min_seconds"),
        ("processes", "processes = 0", "processes is 0"),
        ("latency_percentile", "latency_percentile = 100", "latency_percentile is 100"),
        ("max_latency_ms", "max_latency_ms = -1.0", "max_latency_ms is -1.0; a limit is above zero"),
        ("max_latency_ms", "max_latency_ms = nan", "max_latency_ms is nan"),
        ("max_score_drop", "max_score_drop = inf", "max_score_drop is inf"),
        ("batch_size", "batch_size = 0", "batch_size is 0"),
        ("size_metric", f"{SIZE_METRIC}\nruntime_size_bytes = 0", "runtime_size_bytes is 0; it is the size of the"),
        ("size_metric", f"{SIZE_METRIC}\nruntime_size_bytes = -5", "runtime_size_bytes is -5"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused(folder, key, line, problem):
    with pytest.raises(ConfigError, match=f"mine.toml.*{problem}"):
        read_profile(a_file(folder, **{key: line}))


def test_broken_toml_names_line_and_column(folder):
    with pytest.raises(ConfigError, match=r"mine\.toml is not valid TOML: .*line \d+, column \d+"):
        read_profile(a_file(folder, threads="threads = = 1"))


def test_a_file_that_is_not_utf_8_is_refused(folder):
    path = a_file(folder)
    path.write_bytes(b"\xff\xfe" + path.read_bytes())
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        read_profile(path)


def test_a_name_has_to_be_the_files_name(folder):
    path = a_file(folder, "mine")
    with pytest.raises(ConfigError, match="name is 'mine'; it has to be the file's name, 'other'"):
        read_profile(path.rename(path.with_name("other.toml")))


def test_own_targets_are_found_by_name_and_by_path(folder):
    path = a_file(folder, "my-phone")
    assert load_profile("my-phone") == load_profile(str(path)) == load_profile("targets/my-phone.toml")
    assert [profile.name for profile, _ in list_profiles()] == [*SHIPPED, "my-phone"]


def test_own_targets_are_found_from_a_folder_inside_the_project(folder, monkeypatch):
    a_file(folder, "my-phone")
    (folder / "edgeopt.toml").write_text("", encoding="utf-8")
    (folder / "deep" / "er").mkdir(parents=True)
    monkeypatch.chdir(folder / "deep" / "er")
    assert load_profile("my-phone").name == "my-phone"


def test_one_name_for_two_different_targets_is_refused_and_a_path_is_not(folder):
    path = a_file(folder, "phone", threads="threads = 2")
    with pytest.raises(ConfigError, match="'phone' is a target that edgeopt ships, and a different one in"):
        load_profile("phone")
    assert load_profile(str(path)).threads == 2


def test_a_copy_of_a_shipped_target_does_not_count_twice(folder):
    (folder / "targets").mkdir()
    (folder / "targets" / "phone.toml").write_bytes((shipped_folder() / "phone.toml").read_bytes())
    assert find_profile("phone").parent == shipped_folder()
    assert len(list_profiles()) == len(SHIPPED)


def test_an_unknown_target_is_refused_with_the_nearest_name_and_a_missing_file_with_its_path(folder):
    with pytest.raises(ConfigError, match=r"no target 'fone' \(did you mean 'phone'\?\)\. Known: car, car-cuda"):
        load_profile("fone")
    with pytest.raises(ConfigError, match=r"no target file away\.toml"):
        load_profile("away.toml")


def test_shipped_files_have_the_records_keys_in_the_records_order():
    keys = list(Profile.__struct_fields__)
    for name in SHIPPED:
        assert list(tomllib.loads((shipped_folder() / f"{name}.toml").read_text(encoding="utf-8"))) == keys
