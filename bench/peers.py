#!/usr/bin/env python3
"""Times Whit beside llama.cpp and OpenVINO on the default model, in one run, in turn.

    bench/peers.py setup                 builds llama.cpp from its PyPI source package, installs OpenVINO GenAI from PyPI
                                         and quantizes the models (once)
    bench/peers.py run [--rounds 5]      prints the table; every sample goes to peers.json, a chart to peers.svg, beside
                                         the models
    bench/peers.py chart                 both of them again, from peers.json

With `--model 1.1b` each is of a Llama of 1.1B random weights (bench/random_gguf.py), beside llama.cpp alone.

A round times one engine after the other, each with its own benchmark program (`llama-bench`, `llama-batched-bench`,
`whit bench`, bench/openvino_peer.py); the next round starts with another one, so that a drift of the machine's speed
meets all alike. A ratio is Whit's tokens per second over the peer's within a round; the table gives the median over
rounds and the extremes. Prefill is 512 tokens from an empty context, decode 128 tokens from an empty context, batches
decode 128 tokens of N sequences with prompts of 4 tokens. The peers read one GGUF file of each format; OpenVINO keeps
keys and values in 8 bits by default, the others in 16. All lives under ${XDG_CACHE_HOME:-~/.cache}/whit/peers.
`--under "chrt -f 1"` starts every benchmark program so; `--kv int8` gives Whit's keys and values 8 bits too; `--isa avx2`
has Whit use no more than that.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tarfile
import venv
from pathlib import Path

import plot
import random_gguf

ROOT = Path(__file__).resolve().parent.parent
HOME = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "whit" / "peers"
WHIT = Path(os.environ.get("WHIT_BIN", ROOT / "build/release/whit"))
LLAMA = "0.3.36"  # llama-cpp-python on PyPI, whose source package holds llama.cpp
OPENVINO = "2026.4.1.0"  # openvino-genai on PyPI, which brings the openvino that it needs
TOOLS = ("llama-bench", "llama-quantize", "llama-batched-bench", "llama-server")
# Whit's scheme and the peer's format of the same weight bytes.
PAIRS = (("w4a8", "Q4_0"), ("w4a16", "Q4_0"), ("w8a8", "Q8_0"), ("w8a16", "Q8_0"))


def run(*command, **options):
    return subprocess.run([str(each) for each in command], check=True, text=True, **options)


def output(*command):
    return run(*command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout


def tool(name):
    return HOME / "build" / "bin" / name


def mend_tiles(kernels):
    """Changes this file of llama.cpp's AMX kernels, once, into what g++ 12 builds as it is meant.

    g++ 12 takes the intrinsic to read 8 of its 64 bytes and drops what fills the others: an illegal instruction.
    """
    load, fill = "_tile_loadconfig(&tc);", '__asm__ volatile("" : : "r"(&tc) : "memory"); '
    text = kernels.read_text()
    mended = text.replace(fill + load, load).replace(load, fill + load)
    if mended != text:
        for each in TOOLS:  # built from the text before
            tool(each).unlink(missing_ok=True)
        kernels.write_text(mended)


def models(user):
    """Where the model's files and engines are."""
    return HOME / user.model if user.model else HOME


def setup(user):
    models(user).mkdir(parents=True, exist_ok=True)
    source = HOME / f"llama_cpp_python-{LLAMA}"
    if not source.exists():
        run(sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", "llama-cpp-python",
            "-d", HOME, f"llama-cpp-python=={LLAMA}")
        with tarfile.open(HOME / f"{source.name}.tar.gz") as archive:
            archive.extractall(HOME, filter="data")
    mend_tiles(source / "vendor/llama.cpp/ggml/src/ggml-cpu/amx/mmq.cpp")
    if not all(tool(each).exists() for each in TOOLS):
        off = [f"-D{each}=OFF" for each in ("BUILD_SHARED_LIBS", "LLAMA_BUILD_TESTS", "LLAMA_CURL", "LLAMA_OPENSSL",
                                            "LLAMA_BUILD_UI", "LLAMA_USE_PREBUILT_UI", "LLAMA_BUILD_APP")]
        run("cmake", "-G", "Ninja", "-S", source / "vendor/llama.cpp", "-B", HOME / "build",
            "-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", *off)
        run("cmake", "--build", HOME / "build", "--target", *TOOLS)
    python = HOME / f"openvino-{OPENVINO}" / "bin" / "python"
    if not python.exists():
        venv.create(python.parent.parent, with_pip=True)
        run(python, "-m", "pip", "install", "--quiet", f"openvino-genai=={OPENVINO}")
    model = Path(output(ROOT / "scripts/fetch_model.sh").strip())
    if user.model:
        source, model = model, models(user) / "f16.gguf"
        if not model.exists():
            random_gguf.write(model, source)
    for scheme, peer in PAIRS:
        if scheme not in user.schemes:
            continue
        gguf, engine = models(user) / f"{peer}.gguf", models(user) / scheme
        if not gguf.exists():
            run(tool("llama-quantize"), "--allow-requantize", model, gguf, peer)
        if not engine.exists():  # round-to-nearest: the mode changes no speed
            run(WHIT, "quantize", model, "--mode", "rtn", "--scheme", scheme, "-o", engine)


def llama(peer, user):
    rows = {}
    for row in json.loads(output(*user.under, tool("llama-bench"), "-m", models(user) / f"{peer}.gguf", "-p", 512, "-n", 128,
                                 "-r", 1, "-t", user.threads, "-o", "json")):
        rows["pp512" if row["n_prompt"] else "tg128"] = row["avg_ts"]
    if user.batches:
        lines = output(*user.under, tool("llama-batched-bench"), "-m", models(user) / f"{peer}.gguf", "-npp", 4, "-ntg", 128,
                       "-t", user.threads, "-c", 8192, "-npl", ",".join(map(str, user.batches)),
                       "--output-format", "jsonl").splitlines()
        for line in lines:
            if line.startswith("{"):
                row = json.loads(line)
                rows[f"tg128 b{row['pl']}"] = row["speed_tg"]
    return rows


def whit(scheme, user):
    text = output(*user.under, WHIT, "bench", models(user) / scheme, "-p", 512, "-n", 128,
                  "-b", ",".join(map(str, [1, *user.batches])), "-t", user.threads, "-r", 1, "--json",
                  "--kv-cache-dtype", user.kv, *(["--isa", user.isa] if user.isa else []))
    return {row["test"] + (f" b{row['batch']}" if row["batch"] > 1 else ""): row["tokens_per_s"]
            for row in json.loads(text)["rows"]}


def openvino(peer, user):
    python = HOME / f"openvino-{OPENVINO}" / "bin" / "python"
    return json.loads(output(*user.under, python, ROOT / "bench/openvino_peer.py", models(user) / f"{peer}.gguf",
                             "--threads", user.threads,
                             "--batches", ",".join(map(str, [1, *user.batches]))).splitlines()[-1])


PEERS = {"llama.cpp": llama, "OpenVINO": openvino}


def measure(user):
    engines = [(scheme, whit, scheme) for scheme in user.schemes]
    formats = dict.fromkeys(peer for scheme, peer in PAIRS if scheme in user.schemes)
    engines += [(f"{name} {peer}", PEERS[name], peer) for name in user.peers for peer in formats]
    samples = []
    for index in range(user.rounds):
        order = engines[index % len(engines):] + engines[:index % len(engines)]
        samples.append({name: program(model, user) for name, program, model in order})
        print(f"round {index + 1} of {user.rounds}", file=sys.stderr)
    return samples


def table(samples):
    lines = ["| pair | test | Whit t/s | peer t/s | ratio | least … most |", "|---|---|---:|---:|---:|---:|"]
    for scheme, model in (pair for pair in PAIRS if pair[0] in samples[0]):
        for name in (name for name in (f"{peer} {model}" for peer in PEERS) if name in samples[0]):
            for test in (test for test in samples[0][scheme] if test in samples[0][name]):
                ours, theirs = ([each[key][test] for each in samples] for key in (scheme, name))
                ratios = [a / b for a, b in zip(ours, theirs)]
                lines.append(f"| {scheme} ÷ {name} | {test} | {statistics.median(ours):.1f} | {statistics.median(theirs):.1f} "
                             f"| {statistics.median(ratios):.2f} | {min(ratios):.2f} … {max(ratios):.2f} |")
    return "\n".join(lines)


def chart(samples):
    groups = {}
    for test in next(iter(samples[0].values())):
        group = groups.setdefault(f"{test}, tokens/s", {})
        for engine in sorted(samples[0], key=lambda name: (" " in name, name)):  # Whit's schemes first
            if test in samples[0][engine]:
                rates = [each[engine][test] for each in samples]
                group[engine if " " in engine else f"Whit {engine}"] = (min(rates), statistics.median(rates), max(rates))
    return plot.bars(f"median and range of {len(samples)} rounds", groups)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--model", choices=["1.1b"])
    common.add_argument("--schemes", type=lambda text: text.split(","), default=[scheme for scheme, _ in PAIRS])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("setup", parents=[common])
    commands.add_parser("chart", parents=[common])
    options = commands.add_parser("run", parents=[common])
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--batches", type=lambda text: [int(each) for each in text.split(",") if each], default=[4, 16])
    options.add_argument("--under", type=str.split, default=[], metavar="COMMAND")
    options.add_argument("--kv", default="auto")
    options.add_argument("--isa")
    options.add_argument("--peers", type=lambda text: text.split(","), default=list(PEERS), help=", ".join(PEERS))
    arguments = parser.parse_args()
    if arguments.command == "setup":
        setup(arguments)
        return
    record = models(arguments) / "peers.json"
    if arguments.command == "run":
        unknown = set(arguments.peers) - set(PEERS)
        if unknown:
            parser.error(f"unknown peers: {', '.join(sorted(unknown))}")
        if arguments.model:
            arguments.peers = [peer for peer in arguments.peers if peer != "OpenVINO"]
        record.write_text(json.dumps(measure(arguments), indent=1))
    samples = json.loads(record.read_text())
    print(table(samples))
    record.with_suffix(".svg").write_text(chart(samples))


if __name__ == "__main__":
    main()
