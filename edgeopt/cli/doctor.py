"""``edgeopt doctor``: this machine's hardware, packages and devices, what is missing, and how to get it."""

from __future__ import annotations

import os
import re
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import Literal

import click

import edgeopt
from edgeopt.bench.providers import INSTALL_HINTS
from edgeopt.cli.doctor_devices import Route, find_routes
from edgeopt.config.profiles import read_profile, shipped_folder
from edgeopt.device.base import WorkerRefused, WorkerRequest
from edgeopt.device.local import LocalDevice
from edgeopt.device.named import DESCRIBE_SECONDS
from edgeopt.errors import DeviceError
from edgeopt.records.base import Record
from edgeopt.records.codec import to_json
from edgeopt.records.measurement import Environment
from edgeopt.report import words

_LOW_MEMORY_BYTES = 4_000_000_000
"""Training the default task and measuring at the same time takes about half of it."""

_LOW_DISK_BYTES = 1_000_000_000
"""A workspace with a few dozen trials of a 10 MB network and the outputs of its teacher takes about as much."""

_BUSY_LOAD_RATIO = 0.5
"""Load per core; above this, timings are disturbed now and then."""

INT8_FEATURES = ("avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm")
"""Instruction sets with int8 dot products: VNNI and AMX on x86, dot product and matrix multiply on Arm."""

BF16_FEATURES = ("avx512_bf16", "bf16")
"""Instruction sets that multiply bfloat16."""


class DoctorFinding(Record, frozen=True, kw_only=True):
    """Something that is missing, or that a reader of the numbers should know."""

    kind: Literal["missing", "note"]
    what: str
    advice: str


class Diagnosis(Record, frozen=True, kw_only=True):
    """Everything that ``edgeopt doctor`` reports; ``--json`` prints it."""

    edgeopt: str
    packages: dict[str, str | None]
    """Each package that edgeopt needs, with its version; None if it is not installed."""
    environment: Environment | None
    """None if ONNX Runtime does not start."""
    providers: tuple[str, ...]
    int8_instructions: tuple[str, ...]
    """Instruction sets of the processor that multiply and add int8 in one step."""
    bf16_instructions: tuple[str, ...]
    devices: tuple[Route, ...]
    load_average: float | None
    """Processes that wanted a core, averaged over the last minute; None if the system does not report it."""
    free_disk_bytes: int
    findings: tuple[DoctorFinding, ...]


@click.command(name="doctor")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(as_json: bool) -> int:
    """Check this machine: its hardware, packages and devices, what is missing, and how to get it.

    Exit code 1 if edgeopt can't work here.
    """
    diagnosis = diagnose()
    click.echo(to_json(diagnosis) if as_json else format_diagnosis(diagnosis))
    return 1 if any(finding.kind == "missing" for finding in diagnosis.findings) else 0


def diagnose() -> Diagnosis:
    """Look at packages, processor, memory, disk, devices and ONNX Runtime's providers (in child processes)."""
    packages = {name: _version(name) for name in list_required_packages()}
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
    providers = () if environment is None else environment.providers
    free_bytes = shutil.disk_usage(Path.cwd()).free
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    if environment is not None:
        findings.extend(_hardware_notes(environment))
        if load is not None and load > _BUSY_LOAD_RATIO * environment.cores:
            what = f"other programs use this machine's {environment.cores} cores: load {load:.1f} over the last minute"
            advice = (
                "wait for them or stop them before you rely on milliseconds; each measurement reports what disturbed it"
            )
            findings.append(DoctorFinding(kind="note", what=what, advice=advice))
        findings.extend(_refused_targets(providers))
        findings.extend(_plugin_notes(providers))
    if free_bytes < _LOW_DISK_BYTES:
        what = f"only {free_bytes / 1e9:.1f} GB of disk space are free here"
        findings.append(
            DoctorFinding(kind="note", what=what, advice="put the workspace on another disk: --workspace DIR")
        )
    return Diagnosis(
        edgeopt=edgeopt.__version__,
        packages=packages,
        environment=environment,
        providers=providers,
        int8_instructions=() if environment is None else _present(environment, INT8_FEATURES),
        bf16_instructions=() if environment is None else _present(environment, BF16_FEATURES),
        devices=find_routes(),
        load_average=load,
        free_disk_bytes=free_bytes,
        findings=tuple(findings),
    )


def format_diagnosis(diagnosis: Diagnosis) -> str:
    """Return the diagnosis as text."""
    lines = [f"edgeopt      {diagnosis.edgeopt}, Python {sys.version.split()[0]}"]
    if (machine := diagnosis.environment) is not None:
        lines += [
            f"processor    {machine.processor}, {machine.cores} cores: {' '.join(machine.features)}",
            f"int8         {' '.join(diagnosis.int8_instructions) or 'no dot-product instructions'}",
            f"bfloat16     {' '.join(diagnosis.bf16_instructions) or 'no instructions'}",
            *([f"governor     {machine.governor}"] if machine.governor else []),
            *([f"temperature  {machine.temperature_c:.0f} °C"] if machine.temperature_c is not None else []),
            f"memory       {machine.memory_bytes / 1e9:.1f} GB",
            f"system       {machine.system}",
            f"onnxruntime  {machine.onnxruntime}: {', '.join(diagnosis.providers)}",
        ]
    for route in diagnosis.devices:
        version = f" ({route.version})" if route.version else ""
        lines.append(f"device       {route.kind:8} {'' if route.ready else 'not ready: '}{route.advice}{version}")
    lines.append(f"free disk    {diagnosis.free_disk_bytes / 1e9:.1f} GB")
    lines.append(
        "packages     " + ", ".join(f"{name} {version or 'MISSING'}" for name, version in diagnosis.packages.items())
    )
    for finding in diagnosis.findings:
        lines += ["", f"{finding.kind}: {finding.what}", f"  {finding.advice}"]
    if not any(finding.kind == "missing" for finding in diagnosis.findings):
        lines += ["", "edgeopt has everything that it needs"]
    return "\n".join(lines)


def list_required_packages() -> tuple[str, ...]:
    """Return the names of the packages that edgeopt requires."""
    requirements = metadata.requires("edgeopt") or []
    return tuple(re.split(r"[^A-Za-z0-9_.-]", line, maxsplit=1)[0] for line in requirements if "extra ==" not in line)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _present(machine: Environment, known: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in machine.features if name in known)


def _refused_targets(providers: tuple[str, ...]) -> list[DoctorFinding]:
    """Find the shipped targets that are refused because an execution provider is missing, and say how to get it."""
    targets: dict[str, list[str]] = {}
    for path in sorted(shipped_folder().glob("*.toml")):
        profile = read_profile(path)
        if profile.providers[0] not in providers:
            targets.setdefault(profile.providers[0], []).append(profile.name)
    return [
        DoctorFinding(
            kind="note",
            what=f"this ONNX Runtime has no {provider}: the targets {words.listed(names)} are refused",
            advice=f"{INSTALL_HINTS[provider]}, best in a separate environment: --device 'local:?python=PATH'",
        )
        for provider, names in targets.items()
    ]


def _plugin_notes(providers: tuple[str, ...]) -> list[DoctorFinding]:
    """Note the providers that are here as plug-ins and do not start."""
    notes = []
    for name in providers:
        try:
            LocalDevice().run(WorkerRequest(mode="describe", providers=(name,)), DESCRIBE_SECONDS, {})
        except (WorkerRefused, DeviceError) as error:
            what = str(error) if name in str(error) else f"{name} does not start: {error}"
            advice = "check its package and the driver of the hardware, or leave it out: nothing else needs it"
            notes.append(DoctorFinding(kind="note", what=what, advice=advice))
    return notes


def _hardware_notes(machine: Environment) -> list[DoctorFinding]:
    """Note what affects timings and scores on this machine."""
    notes = []
    if not _present(machine, INT8_FEATURES):
        what = "this processor has no int8 dot-product instructions (VNNI on x86, dot product on Arm)"
        advice = "int8 saves less time here than on newer processors, and its score is judged on this one"
        notes.append(DoctorFinding(kind="note", what=what, advice=advice))
    if machine.governor not in (None, "performance"):
        what = f"the processor's clock speed follows its load (governor '{machine.governor}')"
        advice = "for steady timings: sudo cpupower frequency-set -g performance"
        notes.append(DoctorFinding(kind="note", what=what, advice=advice))
    if 0 < machine.memory_bytes < _LOW_MEMORY_BYTES:
        what = f"this machine has only {machine.memory_bytes / 1e9:.1f} GB of memory"
        notes.append(DoctorFinding(kind="note", what=what, advice="train one candidate at a time: --workers 1"))
    return notes
