"""The README's commands, files, code and tables are true."""

import re
import subprocess
import sys
from pathlib import Path

from edgeopt.cli import COMMANDS
from edgeopt.task import load_task

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")

PROJECT = """
import tiny_task

load_trained_model = tiny_task.trained
train_loader = tiny_task.batches(64, 0)
val_loader = tiny_task.batches(64, 1)
"""


def test_the_five_lines_for_a_classifier_are_a_task(tmp_path):
    code = next(block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "classification" in block)
    (tmp_path / "my_project.py").write_text(PROJECT)
    (tmp_path / "my_task.py").write_text(code)
    task = load_task(f"{tmp_path / 'my_task.py'}:task")
    pairs = [(task.model(inputs[0]).detach().numpy(), targets.numpy()) for inputs, targets in task.eval_batches()]
    assert task.score(pairs) > 0.5
    assert len([line for line in code.splitlines() if line and not line.startswith("#")]) <= 5


def test_every_command_in_the_readme_exists_and_has_the_options_shown():
    shell = "\n".join(re.findall(r"```sh\n(.*?)```", README, re.DOTALL))
    for line in re.findall(r"\bedgeopt (\w+)(.*)$", shell, re.MULTILINE):
        assert line[0] in COMMANDS, line
        help_text = subprocess.run(
            [sys.executable, "-m", "edgeopt", line[0], "--help"], capture_output=True, text=True, check=True
        ).stdout
        for option in re.findall(r"--[\w-]+", line[1]):
            assert option in help_text, (line, option)


def test_every_file_named_in_the_readme_exists():
    for name in re.findall(r"`((?:edgeopt|tools|tests|benchmarks|targets)/[\w./-]+)`", README):
        assert (ROOT / name).exists(), name


def test_every_picture_and_link_in_the_readme_exists():
    for name in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / name).exists(), name


def test_the_readme_stays_short():
    assert len(README.split()) <= 900


def test_continuous_integration_installs_and_tests_as_the_readme_says():
    gate = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for command in ("-c constraints.txt .", "-c constraints.txt '.[test]'", "tools/check"):
        assert command in README
        assert command in gate


def test_the_tables_match_the_results():
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "readme_figures.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
