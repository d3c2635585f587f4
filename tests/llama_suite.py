#!/usr/bin/env python3
"""llama.cpp's own tests of its server, run against `whit serve`, as far as they are about OpenAI's API.

usage: llama_suite.py [--model FILE] [--all]        after bench/peers.py setup, which fetches llama.cpp's source

The suite lies in the source package and is copied to a temporary folder; each of its tests starts the server that it wants
through a program that translates llama-server's options. Its routes are OpenAI's there, any model name is served. EXPECTED are
the tests that must pass; --all runs the whole files and lists what else passes and fails: tests of llama.cpp's own routes
and fields, and those that know the words of one tiny model.
"""
import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from serve_support import client_python

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ["pytest==9.2.0", "requests==2.34.2", "openai==3.54.0", "aiohttp==3.14.5", "numpy==2.4.6", "prometheus_client==0.26.0",
                "wget==3.2", "filelock==4.3.1"]
SUITE = "vendor/llama.cpp/tools/server/tests"
FILES = ["basic", "completion", "chat_completion", "tokenize", "security", "embedding", "ignore_eos", "stream", "tool_call"]
CHAT, EMBEDDING = "unit/test_chat_completion.py::", "unit/test_embedding.py::"
EXPECTED = [
    "unit/test_basic.py::test_server_start_simple",
    CHAT + "test_chat_completions_multiple_choices",
    *(CHAT + f"test_completion_with_response_format[response_format{case}]" for case in (
        "1-10-[ -3000 ]", '2-10-"foooooo"', "4-0-None", "5-0-None", "6-0-None", "7-0-None")),
    *(CHAT + f"test_invalid_chat_completion_req[{case}]" for case in ("None", "string", *(f"messages{i}" for i in range(2, 7)))),
    *(EMBEDDING + f"test_embedding_invalid_input[input{i}]" for i in range(6)),
    *(EMBEDDING + name for name in ("test_embedding_single", "test_embedding_multiple", "test_embedding_pooling_mean", "test_same_prompt_give_same_result",
                                    "test_embedding_openai_library_base64"))]

WRAPPER = """#!{python}
import os, sys
values = dict(zip(sys.argv[1:], sys.argv[2:]))
command = [{whit!r}, "serve", {model!r}, "--threads", "2", "--log-level", "warning", "--port", values["--port"], "--host", values.get("--host", "127.0.0.1")]
names = values.get("--alias", "tinyllama-2").split(",") + {names!r}
for name in names:
    command += ["--served-model-name", name]
if "--api-key" in values:
    for key in values["--api-key"].split(","):
        command += ["--api-key", key]
slots = int(values.get("--parallel", 1))
context = int(values.get("--ctx-size", 2048)) // (1 if "--kv-unified" in sys.argv else slots)
command += ["--max-num-seqs", str(max(slots, 1)), "--max-model-len", str(max(context, 64))]
os.execv(command[0], command)
"""
NAMES = ["test", "gpt-3.5-turbo-instruct", "davinci-002", "text-embedding-3-small", "gpt-4.1", "gpt-3.5-turbo", "gpt-4"]


def main():
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "whit"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--whit", type=Path, default=ROOT / "build/release/whit")
    parser.add_argument("--model", type=Path, default=cache / "SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--all", action="store_true")
    options = parser.parse_args()
    found = sorted((cache / "peers").glob(f"llama_cpp_python-*/{SUITE}"))
    if not found:
        raise SystemExit("llama.cpp's source is not there; run bench/peers.py setup")
    python, why = client_python(REQUIREMENTS)
    if python is None:
        raise SystemExit(why)
    with tempfile.TemporaryDirectory() as name:
        suite = Path(name) / "suite"
        shutil.copytree(found[-1], suite)
        settings = suite / "conftest.py"
        settings.write_text(settings.read_text().replace("ServerPreset.load_all()", "pass"))
        for file in (suite / "unit").glob("*.py"):
            file.write_text(re.sub(r'"(/(?:chat/completions|completions|embeddings|models))"', r'"/v1\1"', file.read_text()))
        server = Path(name) / "server"
        server.write_text(WRAPPER.format(python=sys.executable, whit=str(options.whit.resolve()), model=str(options.model.resolve()), names=NAMES))
        server.chmod(0o755)
        chosen = [f"unit/test_{file}.py" for file in FILES] if options.all else EXPECTED
        command = [str(python), "-m", "pytest", "-v", "-p", "no:cacheprovider", "--no-header", "--tb=line", "-m", "not slow", *chosen]
        sys.exit(subprocess.run(command, cwd=suite, env=os.environ | {"LLAMA_SERVER_BIN_PATH": str(server)}, check=False).returncode)


if __name__ == "__main__":
    main()
