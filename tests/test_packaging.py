"""The wheel is complete, and decoding needs nothing but the base dependencies."""

from __future__ import annotations

import ast
import importlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import specplug

ROOT = Path(__file__).parent.parent
BASE = ROOT / ".venv-base" / "bin" / "python"
TREES = {"specplug": "specplug", "export": "specplug/export", "engines": "specplug/engines"}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", str(folder)]
    subprocess.run([*command, str(ROOT)], check=True, capture_output=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel in a folder of its own, to be put on the path of .venv-base."""
    assert BASE.exists(), "run scripts/setup: it makes .venv-base"
    folder = tmp_path_factory.mktemp("installed")
    command = [str(BASE), "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*command, "--target", str(folder), str(wheel)], check=True)
    return folder


def in_clean_environment(
    installed: Path, code: str, *arguments: str
) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    return subprocess.run(
        [str(BASE), "-W", "error", "-c", code, *arguments],
        env=environment | {"PYTHONPATH": str(installed), "COLUMNS": "200"},
        cwd=installed.parent,  # from the repository root the tree would be imported
        capture_output=True,
        text=True,
    )


def test_wheel_has_every_file_of_the_tree(wheel: Path) -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *TREES],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.split()  # fmt: skip
    expected = set()
    for name in tracked:
        tree, _, rest = name.partition("/")
        if name.startswith("engines/native/"):
            continue  # C++, which is built and installed by itself
        if rest and (ROOT / name).exists():
            expected.add(f"{TREES[tree]}/{rest}")
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert found == expected


NEED_MORE = {
    "specplug/engines/contract.py",  # pytest
    *(
        f"specplug/engines/{name}.py" for name in ("pytorch", "pytorch_head", "torch_slots")
    ),  # torch
    *(  # the extra "distill"
        str(path.relative_to(ROOT)) for path in (ROOT / "specplug" / "distilling").rglob("*.py")
    ),
    *(  # the extras "serve" and "ray"
        str(path.relative_to(ROOT))
        for path in (ROOT / "specplug" / "serving").rglob("*.py")
        if path.stem not in ("__init__", "keys", "settings")  # which the command reads before
    ),
    "specplug/integrations/triton/backend.py",  # Triton's own module
    *(
        f"specplug/integrations/transformers/{name}.py"  # the extra "torch"
        for name in ("__init__", "choosing", "fields", "hook", "kept")
    ),
}


def test_everything_imports_from_the_wheel(installed: Path) -> None:
    files = [path.relative_to(installed) for path in sorted(installed.glob("specplug/**/*.py"))]
    modules = [
        str(file.with_suffix("")).replace("/", ".")
        for file in files
        if "export" not in file.parts and file.name != "__main__.py" and str(file) not in NEED_MORE
    ]
    assert len(modules) > 30
    code = "import importlib, sys; [importlib.import_module(m) for m in sys.argv[1:]]"
    done = in_clean_environment(installed, code, *modules)
    assert done.returncode == 0, done.stderr


def test_decoding_needs_no_torch_transformers_or_onnx(installed: Path, tiny_bundle: Path) -> None:
    code = (
        "import sys, specplug\n"
        "d = specplug.SpeculativeDecoder.from_bundle(sys.argv[1], drafter='draft')\n"
        "r = d.generate('hello', max_tokens=12)\n"
        "assert not {'torch', 'transformers', 'onnx', 'mobius'} & set(sys.modules)\n"
        "print(specplug.__file__); print(list(r.token_ids))"
    )
    done = in_clean_environment(installed, code, str(tiny_bundle))
    assert done.returncode == 0, done.stderr
    where, tokens = done.stdout.splitlines()
    assert Path(where).is_relative_to(installed)
    with specplug.SpeculativeDecoder.from_bundle(tiny_bundle) as decoder:
        assert ast.literal_eval(tokens) == list(decoder.generate("hello", max_tokens=12).token_ids)


def test_missing_extras_say_what_to_install(installed: Path, tmp_path: Path) -> None:
    bundle = str(tmp_path / "x.bundle")
    for extra, command in (
        ("export", ["export", str(tmp_path), "-o", bundle]),
        ("serve", ["serve", bundle]),
    ):
        code = "from specplug.cli import main; main()"
        done = in_clean_environment(installed, code, *command)
        assert done.returncode == 1
        assert f"pip install 'specplug[{extra}]'" in done.stderr


def test_public_names_are_imported_when_they_are_used() -> None:
    """What type checkers see of the package is what it gives."""
    tree = ast.parse(Path(specplug.__file__).read_text(encoding="utf-8"))
    (checked,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.name: node.module
        for node in checked.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert set(seen) == set(specplug.__all__)
    for name, module in seen.items():
        assert getattr(specplug, name) is getattr(importlib.import_module(module), name)
    assert not hasattr(specplug, "nothing")
    assert {*specplug.__all__} <= {*dir(specplug)}


def test_importing_specplug_loads_no_engine() -> None:
    code = "import specplug, sys; print('onnxruntime' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"
