"""A bundle, read by a reader that knows only its format; and folders that it may not replace."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
from builders import a_budget, a_choice

from edgeopt.bundle import app_files
from edgeopt.bundle.write import check_out
from edgeopt.errors import WorkspaceError

NOTHING_KEEPS = a_budget(max_size_bytes=10)


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_an_independent_reader_verifies_every_file_and_reads_the_golden_arrays(tmp_path, write, model):
    out = tmp_path / "out"
    write(out)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["schema"] == "edgeopt/manifest-3"
    assert sorted([*manifest["files"], "manifest.json"]) == names(out)
    for name, entry in manifest["files"].items():
        data = (out / name).read_bytes()
        assert hashlib.sha256(data).hexdigest() == entry["sha256"]
        assert len(data) == entry["size_bytes"]
    arrays = {
        entry["name"]: np.fromfile(out / entry["file"], dtype=np.dtype(entry["dtype"]).newbyteorder("<")).reshape(
            entry["shape"]
        )
        for entry in manifest["golden"]
    }
    np.testing.assert_array_equal(arrays["images"], np.arange(12, dtype=np.float32).reshape(1, 12) / 12)
    np.testing.assert_array_equal(arrays["label"], [2])
    assert (out / "model.onnx").read_bytes() == model.read_bytes()


def test_the_folder_holds_the_files_of_the_format_and_nothing_is_left_next_to_it(tmp_path, write):
    out = tmp_path / "deep" / "out"
    write(out)
    assert [name for name in names(out) if not name.startswith("samples/")] == [
        "README.md",
        "choice.json",
        "golden/input-0.bin",
        "golden/output-0.bin",
        "golden/output-1.bin",
        "manifest.json",
        "model.onnx",
        "report.html",
        "sbom.json",
    ]
    samples = [name.removeprefix("samples/") for name in names(out) if name.startswith("samples/")]
    folders = {name.split("/")[0] for name in samples}
    assert folders == {"android", "browser", "cpp", "ios", "javascript", "node", "python"}
    shipped = Path(app_files.__file__).parent / "samples"
    assert {(shipped / name).read_bytes() == (out / "samples" / name).read_bytes() for name in samples} == {True}
    assert not any("__" in name or name.split("/")[-1].startswith(".") for name in samples)
    assert names_in(out.parent) == ["out"]


def test_without_a_winner_there_is_neither_a_model_nor_golden_arrays(tmp_path, write):
    out = tmp_path / "out"
    write(out, a_choice(budget=NOTHING_KEEPS))
    assert names(out) == ["choice.json", "manifest.json", "report.html"]
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["recipe"], manifest["proof"], manifest["golden"]) == (None, None, [])


def test_an_old_bundle_is_replaced_completely(tmp_path, write):
    out = tmp_path / "out"
    write(out)
    write(out, a_choice(budget=NOTHING_KEEPS))
    assert names(out) == ["choice.json", "manifest.json", "report.html"]


def test_an_empty_folder_is_filled(tmp_path, write):
    out = tmp_path / "out"
    out.mkdir()
    write(out)
    assert (out / "manifest.json").is_file()


def test_a_relative_path_is_fine(tmp_path, write, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(Path("out"))
    assert (tmp_path / "out" / "manifest.json").is_file()


def test_a_folder_with_other_files_is_refused_and_not_changed(tmp_path, write):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("ten years of work")
    with pytest.raises(WorkspaceError, match="files that edgeopt did not write"):
        write(out)
    assert names(out) == ["thesis.txt"]


def test_a_file_at_the_path_is_refused(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(WorkspaceError, match="is not a folder"):
        check_out(tmp_path / "out")


def test_a_link_at_the_path_is_refused(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(WorkspaceError, match="is not a folder"):
        check_out(tmp_path / "out")


def test_a_file_as_the_parent_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkspaceError, match="cannot be written"):
        check_out(tmp_path / "file" / "out")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_parent_folder_that_is_not_writable_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(WorkspaceError, match="cannot be written"):
        check_out(tmp_path / "out")
    tmp_path.chmod(0o700)


def test_a_path_where_nobody_can_write_is_refused():
    with pytest.raises(WorkspaceError, match="cannot be written"):
        check_out(Path("/proc/edgeopt/out"))


def test_checking_leaves_nothing_behind(tmp_path):
    check_out(tmp_path / "out")
    assert names_in(tmp_path) == []


def test_an_error_while_writing_leaves_the_old_bundle(tmp_path, write, model):
    out = tmp_path / "out"
    write(out)
    before = {name: (out / name).read_bytes() for name in names(out)}
    model.unlink()
    with pytest.raises(WorkspaceError, match="could not be written"):
        write(out)
    assert {name: (out / name).read_bytes() for name in names(out)} == before
    assert names_in(tmp_path) == ["out"]
