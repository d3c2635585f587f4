"""Builds the wheel, installs it, and runs tests/python/*_test.py with it in an environment of its own.

The environment (a venv with the pinned packages of tests/python/requirements.txt) is kept in the cache; where it can
neither be found nor made, for want of a network, all of these tests are skipped. Each test there is a test here.
"""
import ast
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "tests/python"
SITE = ROOT / "build/python-site"
TIMEOUT_S = 1800


def test_names():
    """(module, class, method) of every test in tests/python, read without importing what is not installed here."""
    for path in sorted(FOLDER.glob("*_test.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef):
                for each in node.body:
                    if isinstance(each, (ast.FunctionDef, ast.AsyncFunctionDef)) and each.name.startswith("test_"):
                        yield path.stem, node.name, each.name


def run(command, **options):
    """Runs a command that must succeed; its output comes with the error."""
    result = subprocess.run([str(each) for each in command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True, errors="replace", timeout=TIMEOUT_S, check=False, **options)
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))} ended with status {result.returncode}:\n{result.stdout[-8000:]}")
    return result.stdout


def environment():
    """The Python of the venv with the pinned packages; made where it is not there."""
    requirements = FOLDER / "requirements.txt"
    key = hashlib.sha256(requirements.read_bytes() + sys.version.encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "whit"
    venv = cache / f"python-{key}"
    cache.mkdir(parents=True, exist_ok=True)
    with open(cache / "python.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (venv / "complete").exists():
            shutil.rmtree(venv, ignore_errors=True)
            run([sys.executable, "-m", "venv", venv])
            run([venv / "bin/python", "-m", "pip", "install", "--disable-pip-version-check", "--only-binary", ":all:",
                 "--requirement", requirements])
            (venv / "complete").touch()
    return venv / "bin/python"


def install(python):
    """Builds the wheel from this checkout and installs it, alone, in build/python-site."""
    wheels = ROOT / "build/wheels"
    shutil.rmtree(wheels, ignore_errors=True)
    shutil.rmtree(SITE, ignore_errors=True)
    # The compilers by the names that CMake finds for build/release: another name is another compiler to ccache.
    tools = {"CC": "cc", "CXX": "c++"} | os.environ | {"PATH": f"{Path(python).parent}:{os.environ['PATH']}"}
    # Two at a time: as ./test and CI have two cores. Isolation would put nanobind at another path each time, past ccache.
    run([python, "-m", "pip", "wheel", "--disable-pip-version-check", "--no-deps", "--no-build-isolation",
         "--wheel-dir", wheels, ROOT], env=tools | {"CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count() or 2)}, cwd=ROOT / "build")
    wheel, = wheels.glob("whit-*.whl")
    run([python, "-m", "pip", "install", "--disable-pip-version-check", "--no-deps", "--no-index", "--target", SITE, wheel])
    return wheel


class Package(unittest.TestCase):
    """The tests of tests/python; `results` is filled by the first of them that runs."""

    results = None

    @classmethod
    def setUpClass(cls):
        if Package.results is not None:
            return
        try:
            python = environment()
        except (RuntimeError, OSError, subprocess.TimeoutExpired) as error:
            raise unittest.SkipTest(f"no Python environment for the tests: {str(error).strip().splitlines()[-1]}") from error
        wheel = install(python)
        report = ROOT / "build/python_tests.json"
        report.unlink(missing_ok=True)
        process = subprocess.run(
            [python, FOLDER / "run.py", report], cwd=ROOT / "build", stdin=subprocess.DEVNULL, timeout=TIMEOUT_S, check=False,
            env=os.environ | {"PYTHONPATH": f"{SITE}:{FOLDER}:{ROOT / 'tests'}", "WHIT_WHEEL": str(wheel)})
        lines = report.read_text().splitlines() if report.exists() else []
        Package.results = {entry["id"]: entry for entry in map(json.loads, lines)}
        Package.ending = f"the tests' process ended with status {process.returncode}"

    def outcome_of(self, name):
        entry = Package.results.get(name)
        if entry is None:
            self.fail(f"{name} did not finish; {Package.ending}")
        if entry["outcome"] == "skipped":
            self.skipTest(entry["message"])
        self.assertEqual(entry["outcome"], "passed", "\n" + entry["message"])


def add_test(module, group, name):
    identity = f"{module}.{group}.{name}"
    setattr(Package, f"test_{module}_{group}_{name.removeprefix('test_')}", lambda self: self.outcome_of(identity))


for each_name in test_names():
    add_test(*each_name)


if __name__ == "__main__":
    unittest.main()
