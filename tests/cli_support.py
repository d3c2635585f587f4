"""What the tests of the program share: running it, and tiny models with a tokenizer."""
import json
import os
import shutil
import struct
import subprocess
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WHIT = Path(os.environ.get("WHIT_BIN", ROOT / "build/release/whit"))
SPECIAL = ["<unk>", "<s>", "</s>", "<|turn|>"]
CHAT_TEMPLATE = ("{% for message in messages %}<|turn|>{{ message['role'] }}\n{{ message['content'] }}</s>\n{% endfor %}"
                 "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}")


def byte_alphabet():
    """GPT-2's printable stand-ins of the 256 bytes, by byte."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    return [alphabet[byte] for byte in range(256)]


def tokenizer_json(extra_tokens=0):
    """Byte-level BPE without merges: a token a byte after the special ones."""
    vocabulary = {token: i for i, token in enumerate(SPECIAL)}
    for symbol in byte_alphabet() + [f"extra{i}" for i in range(extra_tokens)]:
        vocabulary[symbol] = len(vocabulary)
    return {
        "version": "1.0",
        "added_tokens": [{"id": i, "content": token, "special": True, "single_word": False, "lstrip": False,
                          "rstrip": False, "normalized": False} for i, token in enumerate(SPECIAL)],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    }


def tiny_model(folder, name="llama_rope_llama3", chat=True):
    """A copy of a golden model with a tokenizer; its path."""
    path = Path(folder) / name
    shutil.copytree(ROOT / "tests/golden" / name, path)
    (path / "expected.json").unlink()
    (path / "tokenizer.json").write_text(json.dumps(tokenizer_json()))
    config = {"bos_token": "<s>", "eos_token": "</s>"} | ({"chat_template": CHAT_TEMPLATE} if chat else {})
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


def edit_json(path, change):
    """Rewrites a JSON file with change(its content)."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edit_safetensors(path, change):
    """Rewrites a safetensors file after change(header, data: bytearray)."""
    raw = path.read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    header, data = json.loads(raw[8:8 + size]), bytearray(raw[8 + size:])
    change(header, data)
    encoded = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + data)


class CliTest(unittest.TestCase):
    """Runs the program in a folder of its own, with a cache of its own."""

    def setUp(self):
        if not WHIT.exists():
            self.fail(f"{WHIT} is not built")
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.cache = self.folder / "cache"
        self.environment = os.environ | {"XDG_CACHE_HOME": str(self.cache)}

    def enterContext(self, context):  # of Python 3.11's TestCase; here for older ones
        value = context.__enter__()
        self.addCleanup(context.__exit__, None, None, None)
        return value

    def whit(self, *arguments, **options):
        return subprocess.run([str(WHIT), *map(str, arguments)], capture_output=True, cwd=self.folder, timeout=120, check=False,
                              **{"stdin": subprocess.DEVNULL, "env": self.environment} | options)

    def ok(self, *arguments, **options):
        """Standard output of a run that must succeed."""
        result = self.whit(*arguments, **options)
        self.assertEqual(result.returncode, 0, result.stderr.decode())
        return result.stdout.decode()

    def json(self, *arguments, **options):
        """The document that a run with --json prints."""
        return json.loads(self.ok(*arguments, "--json", **options))

    def refused(self, status, words, *arguments, **options):
        """A run that must end with `status` and one paragraph on stderr that holds all words."""
        result = self.whit(*arguments, **options)
        message = result.stderr.decode()
        self.assertEqual(result.returncode, status, message)
        self.assertEqual(result.stdout, b"")
        self.assertTrue(message.startswith("whit: "), message)
        self.assertNotIn("\n\n", message)
        for word in words:
            self.assertIn(word, message)
        return message

    def files(self):
        """Everything in the test's folder."""
        return sorted(str(path.relative_to(self.folder)) for path in self.folder.rglob("*"))
