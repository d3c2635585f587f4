"""The wheel itself: what it holds and needs, its command, its signatures, its example."""
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import unittest
import zipfile
from pathlib import Path

import signatures
import whit
from support import ROOT, ModelTest

PACKAGE = Path(whit.__file__).parent
# What every Linux with CPython has: the C and C++ run-time.
SYSTEM = re.compile(r"(libc|libm|libpthread|libdl|libstdc\+\+|libgcc_s|ld-linux-x86-64)\.so\.\d+$")


class Wheel(ModelTest):
    def test_depends_on_numpy_alone(self):
        needed = [each for each in importlib.metadata.requires("whit") if "extra ==" not in each]
        self.assertEqual([re.match(r"[\w-]+", each).group() for each in needed], ["numpy"])

    def test_carries_every_library_that_a_bare_system_lacks(self):
        if shutil.which("objdump") is None:
            self.skipTest("objdump is not installed")
        def needed(binary):
            headers = subprocess.run(["objdump", "-p", binary], capture_output=True, text=True, check=True).stdout
            return set(re.findall(r"NEEDED\s+(\S+)", headers)), headers

        libraries = {path.name: path for path in (PACKAGE / "lib").iterdir()}
        own = [*PACKAGE.glob("_native*.so"), PACKAGE / "bin/whit", *PACKAGE.glob("lib/libwhit.so*")]
        for binary in {*own, *libraries.values()}:
            for library in needed(binary)[0]:
                self.assertTrue(library in libraries or SYSTEM.match(library), f"{binary.name} needs {library}")
        # What is ours finds libraries beside itself. Others' libraries do not look there: whatever they need of the bundle,
        # the binary of ours that brings them must bring too.
        for binary in own:
            direct, headers = needed(binary)
            direct &= libraries.keys()
            if direct:
                self.assertRegex(headers, r"RUNPATH\s+\$ORIGIN", binary.name)
            for library in direct:
                self.assertLessEqual(needed(libraries[library])[0] & libraries.keys(), direct, f"{library} of {binary.name}")

    def test_holds_no_path_of_the_machine_that_built_it(self):
        with zipfile.ZipFile(os.environ["WHIT_WHEEL"]) as wheel:
            for name in wheel.namelist():
                self.assertNotIn(str(ROOT).encode(), wheel.read(name), name)

    def test_brings_the_command(self):
        environment = os.environ | {"PYTHONPATH": str(PACKAGE.parent)}
        version = f"whit {whit.__version__}"
        for command in ([PACKAGE.parent / "bin/whit"], [sys.executable, "-m", "whit"]):
            output = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True, env=environment).stdout
            self.assertIn(version, output)
        answer = subprocess.run([PACKAGE.parent / "bin/whit", "run", self.model, "--prompt", "x", "--max-tokens", "2"],
                                capture_output=True, text=True, check=False, env=environment)
        self.assertEqual(answer.returncode, 0, answer.stderr)

    def test_the_signatures_are_the_recorded_ones(self):
        recorded = (ROOT / "tests/data/python_api.txt").read_text()
        self.assertEqual(signatures.text(), recorded, "an intended change is recorded by tests/python/signatures.py")

    def test_the_stub_of_the_native_module_is_true(self):
        from nanobind.stubgen import StubGen
        from whit import _native
        generator = StubGen(_native)
        generator.put(_native)
        self.assertEqual(generator.get(), (PACKAGE / "_native.pyi").read_text(),
                         "an intended change is recorded by tests/python/signatures.py")

    def test_everything_public_is_documented(self):
        for name in whit.__all__:
            value = getattr(whit, name)
            if not isinstance(value, type):
                continue
            self.assertTrue(value.__doc__, name)
            for method, each in vars(value).items():
                if callable(each) and not method.startswith("_"):
                    self.assertTrue(each.__doc__, f"{name}.{method}")

    def test_the_notebook_runs(self):
        run = subprocess.run([sys.executable, ROOT / "examples/notebook.py", self.model, "--samples", "4", "--length", "32",
                              "--group-size", "32", "--plots", self.folder],
                             capture_output=True, text=True, check=False, timeout=300)
        self.assertEqual(run.returncode, 0, run.stderr)
        self.assertIn("smoothquant", run.stdout)


if __name__ == "__main__":
    unittest.main()
