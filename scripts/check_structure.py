#!/usr/bin/env python3
"""Checks what the compiler cannot: that the source tree keeps its shape. Part of ./test.

usage: check_structure.py      prints each violation as file:line: message; exit status 1 where there is any

Each check is a function of this module: name, then one line of description, returning the violations as a list of str.
"""
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOP_FOLDERS = ["include", "src", "python", "tests", "examples", "bench", "scripts", "cmake", "data", "docs", ".ci"]
MAX_LINES = 800

# A folder under src/ may include its own files and those of folders on lower layers.
LAYERS = [
    ["base"],
    ["tensor", "quant", "report"],
    ["ops", "checkpoint", "tokenizer"],
    ["graph", "kernels/cpu", "kernels/cuda", "parallel"],
    ["models"],
    ["engine"],
    ["runtime", "calibrate", "quantize", "evaluate", "export"],
    ["api"],
    ["server", "python", "cli"],
]
LAYER = {folder: layer for layer, folders in enumerate(LAYERS) for folder in folders}
# Folders of one layer do not see each other, but for these.
SIBLINGS = {("quant", "tensor"), ("quantize", "calibrate"), ("cli", "server")}
# Kernels are lower than most, and seen by few: the engine chooses and calls them; calibration makes its dense products
# with the FP32 linear.
KERNELS = {"kernels/cpu", "kernels/cuda"}
KERNEL_USERS = {"engine", "calibrate"}

INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"')


def files(*suffixes):
    """Paths of the project's own files, relative to its root: TOP_FOLDERS and the files beside them."""
    found = [p for p in ROOT.iterdir() if p.is_file() and p.name != ".git"]
    for folder in TOP_FOLDERS:
        for directory, subdirectories, names in os.walk(ROOT / folder):
            subdirectories[:] = [d for d in subdirectories if d != "__pycache__"]
            found += [Path(directory) / n for n in names]
    found = [p for p in found if p.suffix != ".pyc"]
    return sorted(p.relative_to(ROOT) for p in found if not suffixes or p.suffix in suffixes)


def cpp_files():
    return files(".cc", ".h", ".cu", ".cuh")


def text_lines(path):
    """The lines of a text file; none of a binary one."""
    try:
        return (ROOT / path).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        return []


def folder_of(path):
    """The layer folder ("base", "kernels/cpu", …) of a path relative to src/, or None."""
    parts = path.split("/")
    for depth in (2, 1):
        folder = "/".join(parts[:depth])
        if len(parts) > depth and folder in LAYER:
            return folder
    return None


def may_include(user, used, in_test):
    if user == used or (user, used) in SIBLINGS:
        return True
    if in_test and LAYER[used] <= LAYER[user]:
        return True
    return LAYER[used] < LAYER[user] and (used not in KERNELS or user in KERNEL_USERS)


def includes_point_down():
    """An include points to a lower layer only; a test may use the helpers in tests/."""
    wrong = []
    for path in cpp_files():
        if path.parts[0] not in ("src", "include"):
            continue
        in_src = path.parts[0] == "src"
        user = folder_of("/".join(path.parts[1:])) if in_src else None
        if in_src and user is None:
            wrong.append(f"{path}:1: its folder is on no layer; LAYERS in scripts/check_structure.py lists them")
            continue
        for number, line in enumerate(text_lines(path), 1):
            match = INCLUDE.match(line)
            if not match:
                continue
            target = match.group(1)
            if target.startswith("whit/"):
                if in_src and LAYER[user] < LAYER["api"]:
                    wrong.append(f"{path}:{number}: {user} includes the public header {target}")
            elif not in_src:
                wrong.append(f"{path}:{number}: a public header includes {target}")
            elif path.name.endswith("_test.cc") and (ROOT / "tests" / target).is_file():
                continue
            elif not (ROOT / "src" / target).is_file():
                wrong.append(f"{path}:{number}: \"{target}\" is not a path relative to src/")
            elif (used := folder_of(target)) is None or not may_include(user, used, path.name.endswith("_test.cc")):
                wrong.append(f"{path}:{number}: {user} must not include {target}")
    return wrong


def examples_use_the_public_api():
    """Examples include public headers only."""
    return [f"{path}:{number}: {match.group(1)} is not public" for path in cpp_files() if path.parts[0] == "examples"
            for number, line in enumerate(text_lines(path), 1)
            if (match := INCLUDE.match(line)) and not match.group(1).startswith("whit/")]


def files_are_short():
    """No source file is longer than 800 lines."""
    wrong = []
    for path in files(".cc", ".h", ".cu", ".cuh", ".py", ".sh", ".cmake"):
        count = len(text_lines(path))
        if count > MAX_LINES:
            wrong.append(f"{path}:{MAX_LINES}: {count} lines")
    return wrong


def files_say_what_they_are():
    """A C++ file begins with a comment (a .cc may leave that to its header, a test needs none); a header has #pragma once."""
    wrong = []
    for path in cpp_files():
        lines = text_lines(path)
        explained = path.name.endswith("_test.cc") or (path.suffix != ".h" and (ROOT / path.with_suffix(".h")).is_file())
        if not explained and not (lines and lines[0].startswith("//")):
            wrong.append(f"{path}:1: no header comment")
        if path.suffix in (".h", ".cuh") and "#pragma once" not in lines:
            wrong.append(f"{path}:1: no #pragma once")
    return wrong


def nothing_is_machine_specific():
    """No path of one machine and no package index's host name in any file."""
    pattern = re.compile(r"(?<![\w.$}~*-])/(?:work|home|root|Users|mnt)/[\w.]|\b(?:pypi|pythonhosted|debian)\.(?:org|net)\b")
    return [f"{path}:{number}: {match.group(0)}" for path in files() if path.parts[0] != "data"
            for number, line in enumerate(text_lines(path), 1) if (match := pattern.search(line))]


def nothing_is_unfinished():
    """No note of unfinished work in sources."""
    pattern = re.compile(r"\b(?:TO" + r"DO|FIX" + r"ME|X" + r"XX)\b")
    return [f"{path}:{number}: {match.group(0)}" for path in files(".cc", ".h", ".cu", ".cuh", ".py", ".sh", ".cmake", ".md")
            for number, line in enumerate(text_lines(path), 1) if (match := pattern.search(line))]


def formatted():
    """clang-format 14 would change nothing."""
    tool = shutil.which("clang-format-14")
    if tool is None:
        raise RuntimeError("clang-format-14 is not installed (scripts/setup.sh test installs it)")
    paths = [str(p) for p in cpp_files()]
    run = subprocess.run([tool, "--dry-run", "--ferror-limit=1", *paths], cwd=ROOT, capture_output=True, text=True, check=True)
    return [line for line in run.stderr.splitlines() if "[-Wclang-format-violations]" in line]


CHECKS = [includes_point_down, examples_use_the_public_api, files_are_short, files_say_what_they_are,
          nothing_is_machine_specific, nothing_is_unfinished, formatted]

if __name__ == "__main__":
    violations = [v for check in CHECKS for v in check()]
    print("\n".join(violations) if violations else f"{len(CHECKS)} checks of the structure passed")
    sys.exit(1 if violations else 0)
