"""The C example, built by CMake against libwhit.so, on a tiny model."""
import subprocess
import tempfile
import unittest
from pathlib import Path

from cli_support import ROOT, tiny_model

BUILD = ROOT / "build/release"


class CApi(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)

    def run_example(self, *arguments):
        return subprocess.run([BUILD / "example_c_api", *map(str, arguments)], capture_output=True, text=True, check=False,
                              timeout=60, errors="replace")

    def test_the_example_streams_an_answer(self):
        run = self.run_example(tiny_model(self.folder.name), "Once upon", 6)
        self.assertEqual(run.returncode, 0, run.stderr)
        self.assertRegex(run.stdout, r"\[(\d) of \1 tokens streamed, finished by (length|stop)\]\n$")

    def test_the_example_says_what_is_wrong(self):
        run = self.run_example(Path(self.folder.name) / "nowhere")
        self.assertEqual(run.returncode, 1)
        self.assertIn("does not exist", run.stderr)

    def test_the_library_shows_the_c_interface_alone(self):
        names = subprocess.run(["nm", "--dynamic", "--defined-only", BUILD / "libwhit.so"], capture_output=True, text=True,
                               check=True).stdout.split()[2::3]
        self.assertIn("whit_engine_create", names)
        self.assertEqual([name for name in names if not name.startswith("whit_")], [])


if __name__ == "__main__":
    unittest.main()
