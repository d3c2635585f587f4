"""The user's snippet, verbatim: on a tiny model, and on the default model where there is one."""
import os
import subprocess
import sys
import unittest
from pathlib import Path

from support import ROOT, ModelTest

SNIPPET = Path(__file__).with_name("snippet.py")
# Runs the file as it is; the API's default number of samples is lowered around it.
RUNNER = """
import runpy, sys, whit
whit.LLMEngine.from_pretrained.__func__.__kwdefaults__.update(
    calib_samples=int(sys.argv[2]), calib_length=int(sys.argv[3]), group_size=int(sys.argv[4]))
snippet, sys.argv = sys.argv[1], [sys.argv[1], sys.argv[5]]
runpy.run_path(snippet, run_name="__main__")
"""


class Snippet(ModelTest):
    def run_on(self, model, samples, length, group_size):
        run = subprocess.run([sys.executable, "-c", RUNNER, SNIPPET, str(samples), str(length), str(group_size), str(model)],
                             capture_output=True, text=True, timeout=600, check=False)
        self.assertEqual(run.returncode, 0, run.stderr)
        self.assertEqual(run.stderr, "")
        return run.stdout

    def test_is_the_one_that_was_agreed(self):
        shared = ROOT.parent / "shared/snippet.py"
        if not shared.is_file():
            self.skipTest("the shared copy is not here")
        self.assertEqual(SNIPPET.read_text(), shared.read_text())

    def test_runs_on_a_tiny_model(self):
        text = self.run_on(self.model, 4, 32, 32)
        self.assertIn("LlamaForCausalLM AWQ ", text)
        self.assertIn("LlamaForCausalLM SMOOTHQUANT ", text)

    def test_runs_on_a_real_model(self):
        model = os.environ.get("WHIT_SMOL_HF")
        if not model:
            self.skipTest("WHIT_SMOL_HF does not name the default model's directory (./test sets it)")
        text = self.run_on(model, 8, 128, 128)
        for mode in ("AWQ", "SMOOTHQUANT"):
            line = next(line for line in text.splitlines() if line.startswith(f"LlamaForCausalLM {mode} "))
            self.assertIn("Paris", text[text.index(line):])


if __name__ == "__main__":
    unittest.main()
