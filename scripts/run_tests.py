#!/usr/bin/env python3
"""Runs every built test program and tests/*_test.py, and sums their results. Called by ./test, which builds first.

usage: run_tests.py          last line: "N passed, N failed, N skipped"; exit status 1 where anything failed

The release build runs all tests; the sanitizer build leaves out those whose name ends in _slow. A program that crashes or
runs out of time counts as one failure more.
"""
import os
import subprocess
import sys
import unittest
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT_S = 2400
SANITIZER_ENVIRONMENT = {
    "ASAN_OPTIONS": "strict_string_checks=1:detect_stack_use_after_return=1:allocator_may_return_null=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
}


@dataclass
class Result:
    passed: int = 0
    failures: list[str] = field(default_factory=list)
    skips: list[str] = field(default_factory=list)

    def add(self, other):
        self.passed += other.passed
        self.failures += other.failures
        self.skips += other.skips


def run_gtest(build, arguments=(), environment=None):
    """Runs build/<build>/whit_tests; its results are read from the XML that it writes at the end."""
    result = Result()
    folder = ROOT / "build" / build
    report = folder / "whit_tests.xml"
    report.unlink(missing_ok=True)
    command = [str(folder / "whit_tests"), "--gtest_brief=1", f"--gtest_output=xml:{report}", *arguments]
    print(f"== {build}: whit_tests {' '.join(arguments)}", flush=True)
    try:
        status = subprocess.run(command, cwd=ROOT, env=os.environ | (environment or {}), stdin=subprocess.DEVNULL,
                                timeout=TIMEOUT_S, check=False).returncode
        ending = f"exit status {status}"
    except subprocess.TimeoutExpired:
        status, ending = None, f"still running after {TIMEOUT_S} s"
    try:
        cases = ElementTree.parse(report).iter("testcase")
    except (OSError, ElementTree.ParseError) as error:
        result.failures.append(f"{build}: whit_tests: no readable report ({error}); {ending}")
        return result
    for case in cases:
        name = f"{build}: {case.get('classname')}.{case.get('name')}"
        skipped = case.find("skipped")
        if case.find("failure") is not None:
            result.failures.append(name)
        elif skipped is not None:
            reason = (skipped.get("message") or "").strip().splitlines()
            result.skips.append(f"{name}: {reason[-1] if reason else 'no reason given'}")
        elif case.get("status") == "run":
            result.passed += 1
    if status != 0 and not result.failures:
        result.failures.append(f"{build}: whit_tests: all tests passed, then {ending}")
    return result


def run_python():
    """Runs tests/*_test.py in this process."""
    print("== Python: tests/*_test.py", flush=True)
    suite = unittest.defaultTestLoader.discover(str(ROOT / "tests"), pattern="*_test.py", top_level_dir=str(ROOT / "tests"))
    outcome = unittest.TextTestRunner(stream=sys.stdout, verbosity=0).run(suite)
    failed = {test.id() for test, _ in outcome.failures + outcome.errors}
    skips = [f"{test.id()}: {reason}" for test, reason in outcome.skipped]
    return Result(outcome.testsRun - len(failed) - len(skips), sorted(failed), skips)


def main():
    result = Result()
    result.add(run_gtest("release"))
    result.add(run_gtest("asan", ["--gtest_filter=-*_slow:*_slow/*"], SANITIZER_ENVIRONMENT))
    result.add(run_python())
    for title, names in (("skipped", result.skips), ("FAILED", result.failures)):
        for name in names:
            print(f"{title}: {name}")
    print(f"{result.passed} passed, {len(result.failures)} failed, {len(result.skips)} skipped", flush=True)
    return 1 if result.failures or result.passed == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
