"""Every example in README and docs is run: what the documents say happens, happens."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLE = re.compile(r"^\$ (cogumi [^#\n]*?)(?:\s+# ([^\n]*))?$", re.MULTILINE)


def examples() -> list[tuple[str, str, int, bool]]:
    """Return (document, command, exit code, slow) of every ``$ cogumi …`` line in a console block."""
    found = []
    for document in DOCUMENTS:
        for block in re.findall(r"```console\n(.*?)```", document.read_text(), re.DOTALL):
            for command, remark in EXAMPLE.findall(block):
                code = re.search(r"exit (\d)", remark)
                found.append((document.name, command, int(code[1]) if code else 0, "slow" in remark))
    return found


def run(command: str, code: int, workspace: Path, data: Path) -> None:
    words = [word.replace("../shared/data", str(data)) for word in shlex.split(command)[1:]]
    done = subprocess.run(
        [sys.executable, "-m", "cogumi", *words], cwd=workspace, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, f"{command}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("document", "command", "code"), [e[:3] for e in examples() if not e[3]])
def test_quick_examples(document: str, command: str, code: int, tmp_path: Path, data_folder: Path) -> None:
    run(command, code, tmp_path, data_folder)


@pytest.mark.slow
@pytest.mark.timeout(5400)
def test_slow_examples_in_their_order(tmp_path: Path, data_folder: Path) -> None:
    for _, command, code, slow in examples():
        if slow:
            run(command, code, tmp_path, data_folder)


def test_every_document_is_linked_from_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    for document in DOCUMENTS[1:]:
        assert f"docs/{document.name}" in readme


def test_links_between_documents_lead_somewhere() -> None:
    for document in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
            if "://" not in target:
                assert (document.parent / target).exists(), f"{document.name}: {target}"
