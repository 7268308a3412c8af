"""What is published: the wheel is typed and whole, and the tests of the source distribution can be collected."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Both distributions, built without a network."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", str(folder)], cwd=ROOT, check=True, capture_output=True
    )
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, sdist


def of_the_repository(*folders):
    """All files of some folders, but for what Python and runs leave behind."""
    found = [path.relative_to(ROOT) for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    left = ("__pycache__", "demo/out")
    return {str(path) for path in found if not any(f"/{place}/" in f"/{path.as_posix()}" for place in left)}


def adapters():
    return sorted(path.name for path in (ROOT / "integrations").iterdir() if (path / "__init__.py").exists())


@pytest.mark.parametrize("package", ["dft_plugin", *(f"integrations/{name}" for name in adapters())])
def test_every_package_says_that_it_is_typed_and_is_in_the_wheel(package, built):
    assert (ROOT / package / "py.typed").exists()
    with zipfile.ZipFile(built[0]) as wheel:
        names = set(wheel.namelist())
    expected = {name.removeprefix("integrations/") for name in of_the_repository(package)}
    assert expected <= names


def test_the_wheel_holds_our_packages_and_nothing_else(built):
    with zipfile.ZipFile(built[0]) as wheel:
        tops = {name.split("/")[0] for name in wheel.namelist()}
        (info,) = (top for top in tops if top.endswith(".dist-info"))
        entry_points = wheel.read(f"{info}/entry_points.txt").decode()
        assert f"{info}/licenses/LICENSE" in wheel.namelist()
    assert tops - {info} == {"dft_plugin", *adapters()}
    assert "dft = dft_plugin.cli:main" in entry_points
    assert all(f"{name}.hooks" in entry_points for name in adapters())


def test_the_tests_of_the_source_distribution_can_be_collected(built, tmp_path):
    with tarfile.open(built[1]) as sdist:
        sdist.extractall(tmp_path, filter="data")
    (top,) = tmp_path.iterdir()
    held = {str(path.relative_to(top)) for path in top.rglob("*") if path.is_file()}
    assert of_the_repository("tests", "example_configs", "benchmarks", "demo", ".ci") <= held
    tops = {"README.md", "LICENSE", "CHANGELOG.md", "Makefile", "noxfile.py", "pyproject.toml"}
    assert tops | of_the_repository("sessions") <= held
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "tests"],
        cwd=top,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(top), str(top / "integrations")])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
