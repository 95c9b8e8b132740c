"""`edgeopt build` of an ONNX file on a device whose connection breaks."""

from functools import partial

from builds import run_build, start_build, wait_for_worker, write_files
from ssh_server import find_workers


def test_a_build_survives_broken_connections_and_resumes_after_a_device_that_did_not_come_back(sshd, tmp_path):
    write_files(tmp_path)
    is_running = partial(find_workers, sshd)
    with start_build(tmp_path, sshd.uri) as process:
        wait_for_worker(process, "measure", is_running)
        sshd.cut()
        wait_for_worker(process, "measure", is_running)
        authorized = (sshd.folder / "authorized_keys").read_text()
        (sshd.folder / "authorized_keys").write_text("")
        sshd.cut()
        _, stderr = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "the login was refused" in stderr
    assert "Finished trials are kept: run the same command again" in stderr
    assert not (tmp_path / "edgeopt-out").exists()

    (sshd.folder / "authorized_keys").write_text(authorized)
    choice = run_build(tmp_path, sshd.uri)
    steps = {step["step"] for step in choice["winner"]["recipe"]["graph_steps"]}
    assert steps & {"quantize", "quantize-dynamic", "quantize-weights", "store-weights"}
