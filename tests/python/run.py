"""Runs tests/python/*_test.py and writes one JSON line for each test as it ends. Called by tests/python_test.py.

usage: run.py REPORT [NAME…]      REPORT: the file to write; NAME: only these (module.Class.test_name)
"""
import json
import sys
import time
import unittest
from pathlib import Path


class Report(unittest.TextTestResult):
    """Writes each outcome at once: those before a crash are known."""

    report = None

    def _write(self, test, outcome, message=""):
        self.report.write(json.dumps({"id": test.id(), "outcome": outcome, "message": message,
                                      "seconds": round(time.monotonic() - self._start, 2)}) + "\n")
        self.report.flush()

    def startTest(self, test):
        self._start, self._failed = time.monotonic(), []
        super().startTest(test)

    def stopTest(self, test):
        if self._failed:
            self._write(test, "failed", "\n".join(self._failed))
        super().stopTest(test)

    def addSuccess(self, test):
        super().addSuccess(test)
        self._write(test, "passed")

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        self._write(test, "skipped", reason)

    def addFailure(self, test, error):
        super().addFailure(test, error)
        self._failed.append(self.failures[-1][1])

    def addError(self, test, error):
        super().addError(test, error)
        if isinstance(test, unittest.TestCase):
            self._failed.append(self.errors[-1][1])

    def addSubTest(self, test, subtest, error):
        super().addSubTest(test, subtest, error)
        if error is not None:
            self._failed.append(self._exc_info_to_string(error, subtest))


def main():
    loader = unittest.defaultTestLoader
    folder = Path(__file__).resolve().parent
    suite = loader.loadTestsFromNames(sys.argv[2:]) if len(sys.argv) > 2 else loader.discover(str(folder), "*_test.py")
    with open(sys.argv[1], "w", encoding="utf-8") as Report.report:
        outcome = unittest.TextTestRunner(resultclass=Report, verbosity=0, stream=sys.stdout).run(suite)
    return 0 if outcome.wasSuccessful() else 1


if __name__ == "__main__":
    sys.exit(main())
