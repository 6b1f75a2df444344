"""The rules of the house: who imports whom, what stays unloaded, what is never used."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

MAY_IMPORT = {
    "cogumi": set[str](),
    "evals": {"cogumi"},
    "gates": {"evals", "cogumi"},
    "pipeline": {"gates", "evals", "cogumi"},
    "reports": {"gates", "evals", "cogumi"},
    "dashboard": {"reports", "gates", "evals", "cogumi"},
}
NOT_PRODUCT = {"tests", "benchmarks"}
FRONT = {"cogumi.cli", "cogumi.__main__"}
"""The modules above all packages: they may import everything, and nothing else may import them."""

HEAVY = (
    "alembic", "anthropic", "compressed_tensors", "datasets", "duckdb", "gguf", "inspect_ai", "llama_cpp",
    "llmcompressor", "lm_eval", "openai", "pandas", "peft", "plotly", "pyarrow", "streamlit", "torch",
    "transformers",
)  # fmt: skip
PICKLING_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve"}
PICKLING_CALLS = {"torch.load", "torch.save", "pandas.read_pickle"}
REFUSED_PACKAGES = {"litellm", "expectation"}
MOST_LINES = 450


def source_files(*folders: str) -> list[Path]:
    """All Python files under the named top-level folders, as paths relative to the repository."""
    return sorted(p.relative_to(REPOSITORY) for f in folders for p in (REPOSITORY / f).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_front(module: str) -> bool:
    return any(module == front or module.startswith(f"{front}.") for front in FRONT)


def imported_modules(tree: ast.AST, path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, absolute dotted name) for every import, relative and literal dynamic ones included."""
    package = path.with_suffix("").parts[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            stem = ".".join(part for part in (base, node.module) if part)
            yield node.lineno, stem
            yield from ((node.lineno, f"{stem}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = ast.unparse(node.func).rpartition(".")[2]
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.lineno, node.args[0].value


def import_violations(source: str, path: Path) -> list[str]:
    """Say which imports of the module at ``path`` break the import rule, one line each."""
    module, found = module_name(path), []
    for line, name in imported_modules(ast.parse(source, str(path)), path):
        top = name.partition(".")[0]
        if top in NOT_PRODUCT or (is_front(name) and not is_front(module)):
            found.append(f"{path}:{line}: {module} imports {name}")
        elif top in MAY_IMPORT and not is_front(module):
            own = module.partition(".")[0]
            if top != own and top not in MAY_IMPORT[own]:
                found.append(f"{path}:{line}: {module} imports {name}")
    return found


def pickle_violations(source: str, path: Path) -> list[str]:
    """Say where the module loads or saves pickles, under whatever name it imported the function."""
    tree, found = ast.parse(source, str(path)), []
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            stem = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            for alias in node.names:
                full = stem + alias.name
                names[alias.asname or alias.name] = full
                if full.partition(".")[0] in PICKLING_MODULES:
                    found.append(f"{path}:{node.lineno}: imports {full}")
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        head, dot, rest = ast.unparse(node.func).partition(".")
        called = names.get(head, head) + dot + rest
        if called in PICKLING_CALLS:
            found.append(f"{path}:{node.lineno}: calls {called}")
        for keyword in node.keywords:
            if keyword.arg == "allow_pickle" and ast.unparse(keyword.value) != "False":
                found.append(f"{path}:{node.lineno}: {called} allows pickles")
    return found


def refused_requirements(requirements: list[str]) -> list[str]:
    return [r for r in requirements if requirement_name(r) in REFUSED_PACKAGES]


def requirement_name(requirement: str) -> str:
    """The normalised name of a requirement line (PEP 503)."""
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match, requirement
    return re.sub(r"[-_.]+", "-", match.group()).lower()


def declared_requirements() -> list[str]:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    return project["dependencies"] + [line for extra in extras for line in extra]


def pins() -> dict[str, str]:
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    return {requirement_name(line): line for line in lines if line and not line.startswith("#")}


def heavy_after_import(module: str, path: str = "") -> list[str]:
    """Import ``module`` in a fresh interpreter and return the heavy packages that came with it."""
    code = (
        f"import sys; sys.path.insert(0, {path!r}); import {module}; print(*set({HEAVY}) & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return sorted(done.stdout.split())


def test_import_rule() -> None:
    files = source_files(*MAY_IMPORT)
    assert {module_name(path) for path in files} >= {
        "cogumi.cli",
        "evals",
        "gates.engine",
        "pipeline",
        "reports",
    }
    assert [v for p in files for v in import_violations((REPOSITORY / p).read_text(), p)] == []


def test_no_pickle() -> None:
    files = source_files(*MAY_IMPORT, "benchmarks")
    assert [v for p in files for v in pickle_violations((REPOSITORY / p).read_text(), p)] == []


def test_files_stay_of_one_subject() -> None:
    counts = {
        p: len((REPOSITORY / p).read_text().splitlines()) for p in source_files(*MAY_IMPORT, *NOT_PRODUCT)
    }
    assert {str(path): lines for path, lines in counts.items() if lines > MOST_LINES} == {}


@pytest.mark.parametrize(
    "module",
    ["cogumi.cli", "cogumi.cli.dashboard", "dashboard.serve", "gates.engine", "evals", "pipeline", "reports"],
)
def test_heavy_packages_wait_until_needed(module: str) -> None:
    assert heavy_after_import(module) == []


def test_stage_packages_are_light() -> None:
    packages = [module_name(path) for path in source_files("pipeline") if path.name == "__init__.py"]
    assert heavy_after_import(", ".join(packages)) == []


def loaded_by(*arguments: str) -> set[str]:
    """Run the command line in a fresh interpreter and return what it has imported when it ends."""
    code = (
        "import sys\nfrom cogumi.cli import main\n"
        f"try: main({list(arguments)!r})\nexcept SystemExit as end: code = end.code\n"
        "print('LOADED', code, *sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=120
    )
    words = done.stdout.rpartition("LOADED ")[2].split()
    # A plan with a target that nothing can meet ends with 4.
    assert words[:1] in (["0"], ["4"]), done.stderr
    return set(words)


PLAN_NEVER = {
    "cogumi.cli.run", "cogumi.cli.gate", "cogumi.cli.report", "evals.lint.leaks", "lm_eval", "scipy",
    "pipeline.compression.fidelity", "pipeline.compression.gptq", "pipeline.compression.tensor_file",
    "pipeline.compression.width_cut", "pipeline.generation.leaks", "pipeline.local_teacher", *HEAVY,
}  # fmt: skip
"""A command that needs no model answers within a second: it loads what its profile names, and no more."""


def test_a_plan_loads_the_stages_of_its_profile_alone(tmp_path: Path) -> None:
    for profile in ("rehearsal", "llama-3.1-8b"):
        loaded = loaded_by("--workspace", str(tmp_path / "w"), "plan", "--profile", profile)
        assert loaded & PLAN_NEVER == set()
        assert {"pipeline.compression.awq", "pipeline.generation.merge"} <= loaded
    assert "pipeline.training.micro_model" not in loaded


def test_help_of_a_command_loads_no_other() -> None:
    for command in ("gate", "status", "report"):
        loaded = loaded_by(command, "--help")
        packages = {"pipeline", "gates", "evals", "reports", "dashboard", "numpy"}
        assert {name.partition(".")[0] for name in loaded} & packages == set()
        files = {"gate", "status", "report", "evaluate", "plan", "run", "export"}
        assert {name for name in files if f"cogumi.cli.{name}" in loaded} == {command}


def test_requirements_are_pinned_and_none_is_refused() -> None:
    pinned = pins()
    assert refused_requirements(declared_requirements() + list(pinned)) == []
    assert [r for r in declared_requirements() if requirement_name(r) not in pinned] == []
    assert [line for line in pinned.values() if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("cogumi/runner.py", "import evals"),
        ("cogumi/runner.py", "def f():\n    from pipeline.training import train"),
        ("cogumi/runner.py", "import importlib\nimportlib.import_module('gates.engine')"),
        ("cogumi/runner.py", "from cogumi import cli"),
        ("evals/suite.py", "from gates.engine import decide"),
        ("evals/suite.py", "from cogumi.cli import main"),
        ("gates/engine.py", "if TYPE_CHECKING:\n    import pipeline.training as t"),
        ("reports/page.py", "from pipeline import training"),
        ("reports/page.py", "import dashboard"),
        ("dashboard/view.py", "from cogumi.cli import main"),
        ("dashboard/view.py", "from pipeline.training import train"),
        ("pipeline/serve/app.py", "import reports"),
        ("gates/engine.py", "from tests.conftest import workspace"),
        ("pipeline/__init__.py", "from . import training\nimport dashboard"),
    ],
)
def test_a_forbidden_import_is_found(path: str, source: str) -> None:
    assert len(import_violations(source, Path(path))) >= 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("cogumi/cli.py", "import reports, pipeline, gates, evals\nfrom cogumi.cli import x"),
        ("cogumi/cli/run.py", "from pipeline.generation import STAGES\nfrom . import plan"),
        ("cogumi/__main__.py", "from cogumi.cli import main"),
        ("dashboard/view.py", "from reports.model import build_report\nimport gates, evals, cogumi"),
        ("cogumi/runner.py", "from . import store\nfrom .errors import RunError\nimport json, torch"),
        (
            "pipeline/training/__init__.py",
            "from ..generation import x\nfrom gates import y\nimport evals.types",
        ),
    ],
)
def test_an_allowed_import_is_let_through(path: str, source: str) -> None:
    assert import_violations(source, Path(path)) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "import torch\ntorch.load('x')",
        "import torch as t\nt.save({}, 'x')",
        "from torch import load as read\nread('x')",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
    ],
)
def test_a_pickle_is_found(source: str) -> None:
    assert pickle_violations(source, Path("evals/x.py"))


def test_safe_loading_is_let_through() -> None:
    source = (
        "import json\nfrom safetensors.torch import load_file\njson.load(f)\nload_file('x')\nnp.load('x')"
    )
    assert pickle_violations(source, Path("evals/x.py")) == []


def test_a_refused_requirement_is_found() -> None:
    assert refused_requirements(["LiteLLM[proxy]>=1", "numpy>=2", "expectation"]) == [
        "LiteLLM[proxy]>=1",
        "expectation",
    ]


def test_a_heavy_import_is_found(tmp_path: Path) -> None:
    (tmp_path / "heavy_module.py").write_text("import openai\n")
    assert "openai" in heavy_after_import("heavy_module", str(tmp_path))
