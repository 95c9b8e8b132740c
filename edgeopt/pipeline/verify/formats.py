"""The results of checks in the forms that continuous integration reads: JUnit's XML, and a table in Markdown."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence

from edgeopt.pipeline.verify.findings import CheckResult

_ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
_NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_TAGS = {"missed": "failure", "bad": "error", "note": "skipped"}
"""Status of a finding to the element that reports it; a passed one has none."""
_MARKS = {"passed": "✅", "missed": "❌", "bad": "❌", "note": "ℹ️"}


def to_junit(results: Sequence[CheckResult]) -> str:
    """Return a report in JUnit's XML: a suite for each device, a case for each finding; notes are skipped cases."""
    root = ET.Element("testsuites", name="edgeopt check")
    for result in results:
        statuses: list[str] = [finding.status for finding in result.findings]
        attributes = {"name": f"{result.bundle} on {result.device}", "tests": str(len(statuses))}
        for name, status in (("failures", "missed"), ("errors", "bad"), ("skipped", "note")):
            attributes[name] = str(statuses.count(status))
        suite = ET.SubElement(root, "testsuite", attributes)
        for finding in result.findings:
            case = ET.SubElement(suite, "testcase", classname=f"edgeopt.{finding.kind}", name=finding.name)
            if finding.status in _TAGS:
                ET.SubElement(case, _TAGS[finding.status], message=_printable(f"{finding.name} {finding.text}"))
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _printable(text: str) -> str:
    """Return text without colours of a terminal and characters that XML has not; errors quote what tools print."""
    return _NOT_IN_XML.sub("", _ANSI.sub("", text))


def to_markdown(results: Sequence[CheckResult], verdicts: Sequence[str]) -> str:
    """Return a heading with the verdict and a table of findings for each device."""
    lines = []
    for result, verdict in zip(results, verdicts, strict=True):
        lines += [f"### {_escape(verdict)}", "", "| | check | of | found |", "|---|---|---|---|"]
        lines += [
            f"| {_MARKS[finding.status]} | {finding.kind} | {_escape(finding.name)} | {_escape(finding.text)} |"
            for finding in result.findings
        ]
        lines.append("")
    return "\n".join(lines) + "\n"


def _escape(text: str) -> str:
    return _printable(text).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
