#!/usr/bin/env python3
"""Times Whit's GPU kernels beside other people's, in one run, in turn.

    bench/cuda_peers.py setup                 fetches CUTLASS's headers from PyPI and compiles bench/cutlass/int8.cu (once; nvcc,
                                              a minute or two, no GPU)
    bench/cuda_peers.py run [w8a8] [w4a16] [attention]       prints a table each

    w8a8        beside CUTLASS's int8 products with the same scales, the fastest of four shapes of tiles at each point, and
                cuBLASLt's int8 products, which are not scaled
    w4a16       with zero points, beside Machete's fastest schedule, symmetric
    attention   beside FlashAttention-3 (its fp8 beside our int8 and fp8)

cuBLASLt, Machete and FlashAttention-3 are timed by bench/vllm_peers.py, with whatever PyTorch (2.11) and vLLM (0.26.0) --python has
installed; WHIT_VLLM_C and WHIT_VLLM_FA3 name vLLM's two libraries (_C_stable_libtorch.abi3.so, _vllm_fa3_C.abi3.so) where the package
is not installed.
A round times one program after the other, each point the median of 25 replays over copies of the weight or cache larger than L2; the
next round starts with the last program. A ratio is the best peer's time over Whit's within a round; the table gives medians over rounds and
the ratio's extremes. All lives under ${XDG_CACHE_HOME:-~/.cache}/whit/peers.
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
BUILD = Path(os.environ.get("WHIT_BENCH_BUILD", ROOT / "build/release"))
CUTLASS = "4.2.0.0"  # nvidia-cutlass on PyPI, whose wheel holds the headers
PEER = HOME / f"cutlass-{CUTLASS}-int8"
STORAGES = {"bf16": "bf16", "int8": "fp8", "fp8": "fp8"}  # of ours: FlashAttention-3's


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


class Products:
    """A format's products of one shape: {M: µs} of each program."""

    def __init__(self, name, shape, arguments):
        self.name, self.shape, self.rows, self.python = name, shape, arguments.m, arguments.python
        self.title = f"{name} {shape}, M"

    def whit(self):
        found = lines(BUILD / "bench_cuda_kernels", "--no-peaks", "--formats", self.name, "--shapes", self.shape, "--m", self.rows)
        return {int(f[2]): float(f[3]) for f in map(str.split, found) if f[:2] == [self.name, self.shape]}

    def cutlass(self):
        times = {}
        for _, m, us in map(str.split, lines(PEER, *self.shape.split("x"), self.rows)):
            times[int(m)] = min(float(us), times.get(int(m), float("inf")))
        return times

    def by_torch(self):
        found = lines(self.python, ROOT / "bench/vllm_peers.py", "product", self.name, self.shape, self.rows)
        return {int(m): float(us) for m, us in map(str.split, found)}

    def peers(self):
        if self.name == "w4a16":
            return {"Machete": self.by_torch}
        return {"CUTLASS int8": self.cutlass, "cuBLASLt int8, not scaled": self.by_torch}


class Attention:
    title = "attention: phase, keys and values, batch, context"

    def __init__(self, python):
        self.python = python

    def whit(self):
        found = [line.strip("| ").split(" | ") for line in lines(BUILD / "bench_cuda_attention")]
        return {f"{f[0]} {f[1]} {f[2]}": float(f[3]) for f in found if f[0].startswith(("decode ", "prefill "))}

    def flash_attention(self):
        theirs = dict(line.rsplit(" ", 1) for line in lines(self.python, ROOT / "bench/vllm_peers.py", "attention"))
        return {name.replace(storage, ours): float(us) for name, us in theirs.items()
                for ours, storage in STORAGES.items() if name.split()[1] == storage}

    def peers(self):
        return {"FlashAttention-3": self.flash_attention}


def compare(subject, count):
    peers = subject.peers()
    programs = {"Whit": subject.whit, **peers}
    rounds = []
    for index in range(count):
        order = list(programs)[:: 1 if index % 2 == 0 else -1]
        rounds.append({program: programs[program]() for program in order})
    print(f"\n| {subject.title} | Whit, us | {', us | '.join(peers)}, us | best peer ÷ Whit | least … most |")
    print("|---" + "|---:" * (len(peers) + 3) + "|")
    for point in rounds[0]["Whit"]:
        here = [peer for peer in peers if all(point in each[peer] for each in rounds)]
        if not here:
            continue
        medians = {program: f"{statistics.median(each[program][point] for each in rounds):.1f}" for program in ["Whit", *here]}
        ratios = [min(each[peer][point] for peer in here) / each["Whit"][point] for each in rounds]
        print(f"| {point} | {medians['Whit']} | {' | '.join(medians.get(peer, '–') for peer in peers)} | "
              f"{statistics.median(ratios):.2f} | {min(ratios):.2f} … {max(ratios):.2f} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("setup")
    options = commands.add_parser("run")
    options.add_argument("subjects", nargs="*", help="w8a8, w4a16, attention; default: all")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--shapes", default="28672x4096", help="N x K, separated by commas")
    options.add_argument("--m", default="64,128,256,512,1024,4096", help="rows, separated by commas")
    options.add_argument("--python", default=sys.executable, help="of an environment with PyTorch and vLLM")
    arguments = parser.parse_args()
    if arguments.command == "setup":
        setup()
        return
    for subject in arguments.subjects or ["w8a8", "w4a16", "attention"]:
        if subject == "attention":
            compare(Attention(arguments.python), arguments.rounds)
        elif subject in ("w8a8", "w4a16"):
            for shape in arguments.shapes.split(","):
                compare(Products(subject, shape, arguments), arguments.rounds)
        else:
            parser.error(f"{subject}: not w8a8, w4a16 or attention")


if __name__ == "__main__":
    main()
