#!/usr/bin/env python3
"""Times w8a8 on a GPU beside CUTLASS's int8 products with the same scales, in one run, in turn.

    bench/cuda_peers.py setup                fetches CUTLASS's headers from PyPI and compiles bench/cutlass/int8.cu (once; nvcc,
                                             a minute or two, no GPU)
    bench/cuda_peers.py run [--rounds 5]     prints the table

A round times one program after the other, each shape and number of rows over copies of the weight larger than L2, the
median of 25 calls; the next round starts with the other program. CUTLASS counts with the fastest of four shapes of tiles
at each point. A ratio is CUTLASS's time over Whit's within a round; the table gives medians over rounds and the ratio's
extremes. All lives under ${XDG_CACHE_HOME:-~/.cache}/whit/peers.
"""
import argparse
import os
import statistics
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOME = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "whit" / "peers"
OURS = Path(os.environ.get("WHIT_BENCH_CUDA_KERNELS", ROOT / "build/release/bench_cuda_kernels"))
CUTLASS = "4.2.0.0"  # nvidia-cutlass on PyPI, whose wheel holds the headers
PEER = HOME / f"cutlass-{CUTLASS}-int8"


def setup():
    HOME.mkdir(parents=True, exist_ok=True)
    headers = HOME / f"cutlass-{CUTLASS}"
    if not headers.exists():
        subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", HOME,
                        f"nvidia-cutlass=={CUTLASS}"], check=True)
        with zipfile.ZipFile(next(HOME.glob(f"nvidia_cutlass-{CUTLASS}-*.whl"))) as wheel:
            wheel.extractall(headers, [name for name in wheel.namelist() if "/source/include/" in name])
    subprocess.run(["nvcc", "-std=c++17", "-O3", "-DNDEBUG", "-gencode", "arch=compute_90a,code=sm_90a", "--expt-relaxed-constexpr",
                    f"-I{headers}/cutlass_library/source/include", "-o", PEER, ROOT / "bench/cutlass/int8.cu", "-lcuda"],
                   check=True)


def lines(*command):
    return subprocess.run([str(each) for each in command], check=True, text=True, stdout=subprocess.PIPE).stdout.splitlines()


def whit(shape, rows):
    times = {}
    for line in lines(OURS, "--no-peaks", "--formats", "w8a8", "--shapes", shape, "--m", rows):
        if line.startswith("w8a8"):
            fields = line.split()
            times[int(fields[2])] = float(fields[3])
    return times


def cutlass(shape, rows):
    times = {}
    for line in lines(PEER, *shape.split("x"), rows):
        _, m, us = line.split()
        times[int(m)] = min(float(us), times.get(int(m), float("inf")))
    return times


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("setup")
    options = commands.add_parser("run")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--shapes", default="28672x4096", help="N x K, separated by commas")
    options.add_argument("--m", default="64,128,256,512,1024,4096", help="rows, separated by commas")
    arguments = parser.parse_args()
    if arguments.command == "setup":
        setup()
        return
    print("| N x K | M | Whit w8a8, us | CUTLASS int8, us | ratio | least … most |\n|---|---:|---:|---:|---:|---:|")
    for shape in arguments.shapes.split(","):
        rounds = []
        for index in range(arguments.rounds):
            order = (whit, cutlass) if index % 2 == 0 else (cutlass, whit)
            rounds.append({program: program(shape, arguments.m) for program in order})
        for m in rounds[0][whit]:
            ours, theirs = ([each[program][m] for each in rounds] for program in (whit, cutlass))
            ratios = [b / a for a, b in zip(ours, theirs)]
            print(f"| {shape} | {m} | {statistics.median(ours):.1f} | {statistics.median(theirs):.1f} | "
                  f"{statistics.median(ratios):.2f} | {min(ratios):.2f} … {max(ratios):.2f} |")


if __name__ == "__main__":
    main()
