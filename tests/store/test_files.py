import pytest

from edgeopt.store.files import PARTIAL_MARK, write_whole
from edgeopt.store.workspace import Workspace


def test_a_file_is_written_from_bytes_or_by_a_function_that_gets_a_path_with_the_same_suffix(tmp_path):
    write_whole(tmp_path / "a.json", b"{}")
    write_whole(tmp_path / "b.npz", lambda path: path.write_text(path.suffix))
    assert (tmp_path / "a.json").read_bytes() == b"{}"
    assert (tmp_path / "b.npz").read_text() == ".npz"
    assert {path.name for path in tmp_path.iterdir()} == {"a.json", "b.npz"}


def test_a_failed_write_leaves_the_old_file_and_no_remains(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("old")

    def fail(path):
        path.write_text("half of the new")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_whole(file, fail)
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_workspace_removes_what_a_killed_build_left_half_written(tmp_path):
    with Workspace(tmp_path).open() as workspace:
        left = workspace.folder("teacher") / "task" / f"0{PARTIAL_MARK}1-2.safetensors"
        left.parent.mkdir()
        left.touch()
        kept = left.with_name("0.safetensors")
        kept.touch()
    with Workspace(tmp_path).open():
        assert not left.exists()
        assert kept.exists()


def test_a_scratch_folder_is_empty_at_first_and_gone_afterwards_even_after_a_kill_or_an_error(tmp_path):
    workspace = Workspace(tmp_path)
    left = tmp_path / "stages" / "work" / "left by a killed build"
    left.parent.mkdir(parents=True)
    left.touch()
    with workspace.scratch("work") as folder:
        assert list(folder.iterdir()) == []
        (folder / "file").touch()
    assert not folder.exists()
    with pytest.raises(ZeroDivisionError), workspace.scratch("work") as folder:
        raise ZeroDivisionError
    assert not folder.exists()
