"""Runs the checks of scripts/check_structure.py as tests."""
import shutil
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
import check_structure  # noqa: E402


class Structure(unittest.TestCase):
    maxDiff = None


def make_test(check):
    def test(self):
        if check is check_structure.formatted and shutil.which("clang-format-14") is None:
            self.skipTest("clang-format-14 is not installed")
        violations = check()
        self.assertFalse(violations, "\n" + "\n".join(violations))
    test.__doc__ = check.__doc__
    return test


for each in check_structure.CHECKS:
    setattr(Structure, f"test_{each.__name__}", make_test(each))


class IncludeRules(unittest.TestCase):
    """The rule itself, so that a check that finds nothing is known to be able to find something."""

    def test_down_is_allowed_and_up_is_not(self):
        self.assertTrue(check_structure.may_include("models", "base", in_test=False))
        self.assertFalse(check_structure.may_include("base", "tensor", in_test=False))
        self.assertFalse(check_structure.may_include("base", "tensor", in_test=True))

    def test_siblings_are_hidden_but_for_the_named_pairs(self):
        self.assertTrue(check_structure.may_include("quant", "tensor", in_test=False))
        self.assertFalse(check_structure.may_include("tensor", "quant", in_test=False))
        self.assertFalse(check_structure.may_include("runtime", "quantize", in_test=False))
        self.assertFalse(check_structure.may_include("graph", "kernels/cpu", in_test=False))

    def test_kernels_are_seen_by_engine_and_calibration_alone(self):
        self.assertTrue(check_structure.may_include("engine", "kernels/cpu", in_test=False))
        self.assertTrue(check_structure.may_include("calibrate", "kernels/cpu", in_test=False))
        self.assertFalse(check_structure.may_include("cli", "kernels/cpu", in_test=False))

    def test_a_path_names_its_layer_folder(self):
        self.assertEqual(check_structure.folder_of("kernels/cpu/avx2/linear.h"), "kernels/cpu")
        self.assertEqual(check_structure.folder_of("base/error.h"), "base")
        self.assertIsNone(check_structure.folder_of("elsewhere/error.h"))


if __name__ == "__main__":
    unittest.main()
