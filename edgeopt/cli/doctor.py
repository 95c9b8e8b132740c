"""``edgeopt doctor``: what this machine has, what is missing, and how to get it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Literal

import click

import edgeopt
from edgeopt.bench.requests import INSTALL
from edgeopt.cli.doctor_devices import Route, routes
from edgeopt.config.profiles import read_profile, shipped_folder
from edgeopt.device.local import LocalDevice
from edgeopt.errors import DeviceError
from edgeopt.records.base import Record
from edgeopt.records.codec import to_json
from edgeopt.records.measurement import Environment
from edgeopt.report import words

LOW_MEMORY_BYTES = 4_000_000_000
"""Training the default task beside its measuring takes about half of it."""

LOW_DISK_BYTES = 1_000_000_000
"""A workspace of a few dozen trials of a 10 MB network, with the outputs of its teacher."""

BUSY_SHARE = 0.5
"""Of the cores: above, timings are disturbed now and then."""

INT8 = ("avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm")
"""Instruction sets with int8 dot products: VNNI and AMX on x86, dot product and matrix multiply on Arm."""

BF16 = ("avx512_bf16", "bf16")
"""Instruction sets that multiply bfloat16."""

PROVIDERS_SECONDS = 120.0

_PROVIDERS = "import json, onnxruntime; print(json.dumps(onnxruntime.get_available_providers()))"


class DoctorFinding(Record, frozen=True, kw_only=True):
    """Something that is missing, or that a reader of numbers should know."""

    kind: Literal["missing", "note"]
    what: str
    advice: str


class Diagnosis(Record, frozen=True, kw_only=True):
    """All that ``edgeopt doctor`` says; ``--json`` prints it."""

    edgeopt: str
    packages: dict[str, str | None]
    """Each package that edgeopt needs, with its version; None where it is not installed."""
    environment: Environment | None
    """None where ONNX Runtime does not start."""
    providers: tuple[str, ...]
    int8_instructions: tuple[str, ...]
    """Those of the processor that multiply and add int8 in one step."""
    bf16_instructions: tuple[str, ...]
    devices: tuple[Route, ...]
    load_average: float | None
    """Processes that wanted a core over the last minute; None where the system does not tell."""
    free_disk_bytes: int
    findings: tuple[DoctorFinding, ...]


@click.command(name="doctor")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(as_json: bool) -> int:
    """Say what this machine has, what is missing, and how to get it. Exit code 1 where edgeopt cannot work."""
    diagnosis = diagnose()
    click.echo(to_json(diagnosis) if as_json else diagnosis_text(diagnosis))
    return 1 if any(finding.kind == "missing" for finding in diagnosis.findings) else 0


def diagnose() -> Diagnosis:
    """Look at packages, processor, memory, disk and ONNX Runtime's providers (in child processes)."""
    packages = {name: _version(name) for name in required_packages()}
    findings = [
        DoctorFinding(kind="missing", what=f"the package {name}", advice=f"pip install -c constraints.txt {name}")
        for name, version in packages.items()
        if version is None
    ]
    environment: Environment | None = None
    try:
        _, environment = LocalDevice().describe()
    except DeviceError as error:
        advice = "pip install --force-reinstall -c constraints.txt onnxruntime numpy"
        findings.append(DoctorFinding(kind="missing", what=f"a working ONNX Runtime: {error}", advice=advice))
    providers = available_providers()
    free = shutil.disk_usage(Path.cwd()).free
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    if environment is not None:
        findings.extend(_hardware_notes(environment))
        if load is not None and load > BUSY_SHARE * environment.cores:
            what = f"other programs want this machine's {environment.cores} cores: load {load:.1f} over the last minute"
            advice = (
                "wait for them or stop them before you rely on milliseconds; each measurement says what disturbed it"
            )
            findings.append(DoctorFinding(kind="note", what=what, advice=advice))
        findings.extend(_refused_targets(providers) if providers else ())
    if free < LOW_DISK_BYTES:
        what = f"{free / 1e9:.1f} GB of disk are free here"
        findings.append(DoctorFinding(kind="note", what=what, advice="put the workspace elsewhere: --workspace FOLDER"))
    return Diagnosis(
        edgeopt=edgeopt.__version__,
        packages=packages,
        environment=environment,
        providers=providers,
        int8_instructions=() if environment is None else _among(environment, INT8),
        bf16_instructions=() if environment is None else _among(environment, BF16),
        devices=routes(),
        load_average=load,
        free_disk_bytes=free,
        findings=tuple(findings),
    )


def diagnosis_text(diagnosis: Diagnosis) -> str:
    """Return the diagnosis as text."""
    lines = [f"edgeopt      {diagnosis.edgeopt}, Python {sys.version.split()[0]}"]
    if (machine := diagnosis.environment) is not None:
        lines += [
            f"processor    {machine.processor}, {machine.cores} cores: {' '.join(machine.features)}",
            f"int8         {' '.join(diagnosis.int8_instructions) or 'no instructions for dot products'}",
            f"bfloat16     {' '.join(diagnosis.bf16_instructions) or 'no instructions'}",
            *([f"governor     {machine.governor}"] if machine.governor else []),
            *([f"temperature  {machine.temperature_c:.0f} °C"] if machine.temperature_c is not None else []),
            f"memory       {machine.memory_bytes / 1e9:.1f} GB",
            f"system       {machine.system}",
            f"onnxruntime  {machine.onnxruntime}: {', '.join(diagnosis.providers)}",
        ]
    for place in diagnosis.devices:
        version = f" ({place.version})" if place.version else ""
        lines.append(f"device       {place.kind:8} {'' if place.ready else 'not yet: '}{place.advice}{version}")
    lines.append(f"free disk    {diagnosis.free_disk_bytes / 1e9:.1f} GB")
    lines.append(
        "packages     " + ", ".join(f"{name} {version or 'MISSING'}" for name, version in diagnosis.packages.items())
    )
    for finding in diagnosis.findings:
        lines += ["", f"{finding.kind}: {finding.what}", f"  {finding.advice}"]
    if not any(finding.kind == "missing" for finding in diagnosis.findings):
        lines += ["", "nothing that edgeopt needs is missing"]
    return "\n".join(lines)


def required_packages() -> tuple[str, ...]:
    """Return the names of the packages that edgeopt itself says it needs."""
    requirements = metadata.requires("edgeopt") or []
    return tuple(re.split(r"[^A-Za-z0-9_.-]", line, maxsplit=1)[0] for line in requirements if "extra ==" not in line)


def available_providers() -> tuple[str, ...]:
    """Ask ONNX Runtime, in a child process, which execution providers it has; empty where it does not start."""
    environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "1"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROVIDERS],
            capture_output=True,
            text=True,
            env=environment,
            timeout=PROVIDERS_SECONDS,
            check=True,
        )
    except (subprocess.SubprocessError, OSError):
        return ()
    return tuple(json.loads(done.stdout))


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _among(machine: Environment, known: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in machine.features if name in known)


def _refused_targets(providers: tuple[str, ...]) -> list[DoctorFinding]:
    """Say which of the shipped targets are refused for want of an execution provider, and how to get it."""
    targets: dict[str, list[str]] = {}
    for path in sorted(shipped_folder().glob("*.toml")):
        profile = read_profile(path)
        if profile.providers[0] not in providers:
            targets.setdefault(profile.providers[0], []).append(profile.name)
    return [
        DoctorFinding(
            kind="note",
            what=f"no {provider} in this ONNX Runtime: the targets {words.listed(names)} are refused",
            advice=f"{INSTALL[provider]}: best in an environment of its own, named by --device 'local:?python=PATH'",
        )
        for provider, names in targets.items()
    ]


def _hardware_notes(machine: Environment) -> list[DoctorFinding]:
    """Say what a reader of timings and scores from this machine should know."""
    notes = []
    if not _among(machine, INT8):
        what = "this processor has no instructions for int8 dot products (VNNI, or dot product on Arm)"
        advice = "int8 gains less time here than on newer processors, and its score is judged on this one"
        notes.append(DoctorFinding(kind="note", what=what, advice=advice))
    if machine.governor not in (None, "performance"):
        what = f"the processor's clock speed follows its load (governor '{machine.governor}')"
        advice = "for steady timings: sudo cpupower frequency-set -g performance"
        notes.append(DoctorFinding(kind="note", what=what, advice=advice))
    if 0 < machine.memory_bytes < LOW_MEMORY_BYTES:
        what = f"{machine.memory_bytes / 1e9:.1f} GB of memory"
        notes.append(DoctorFinding(kind="note", what=what, advice="train one candidate at a time: --workers 1"))
    return notes
