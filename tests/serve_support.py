"""What the tests of `whit serve` share: a running server, a test case with one, environments with clients from PyPI."""
import hashlib
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

from cli_support import WHIT, tiny_model

ADDRESS = re.compile(r"at (https?)://([^:]+):(\d+)")


def client_python(requirements):
    """The interpreter of an environment with `requirements` (kept in the cache), or None and the reason why there is none."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "whit"
    digest = hashlib.sha256(" ".join([*requirements, sys.version]).encode()).hexdigest()[:12]
    folder = cache / f"serve-test-{digest}"
    python = folder / "bin/python3"
    if not python.exists():
        cache.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix="serve-test-", dir=cache))
        try:
            subprocess.run([sys.executable, "-m", "venv", str(work)], check=True, capture_output=True, timeout=120)
            subprocess.run([str(work / "bin/python3"), "-m", "pip", "install", "-q", "--disable-pip-version-check", *requirements],
                           check=True, capture_output=True, timeout=900)
            work.rename(folder)
        except (subprocess.SubprocessError, OSError) as error:
            detail = getattr(error, "stderr", None) or str(error).encode()
            return None, f"{requirements[0]} could not be installed: {detail.decode(errors='replace').strip()[-200:]}"
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return python, ""


class Server:
    """A running server on a port of its own."""

    def __init__(self, model, *arguments):
        self.log = tempfile.TemporaryFile()
        self.process = subprocess.Popen([str(WHIT), "serve", str(model), "--port", "0", "--threads", "2", *map(str, arguments)],
                                        stdout=subprocess.PIPE, stderr=self.log, stdin=subprocess.DEVNULL)
        line = self.process.stdout.readline().decode()
        match = ADDRESS.search(line)
        if not match:
            self.process.wait(10)
            self.log.seek(0)
            raise AssertionError(f"no address in {line!r}; {self.log.read().decode()}")
        self.scheme, self.host, self.port = match[1], match[2], int(match[3])

    def connect(self, timeout=60):
        return http.client.HTTPConnection(self.host, self.port, timeout=timeout)

    def request(self, method, path, body=None, headers=None, timeout=60):
        """Status, headers, body of one request; a body that is no bytes is sent as JSON."""
        connection = self.connect(timeout)
        try:
            if body is not None and not isinstance(body, bytes):
                body = json.dumps(body).encode()
            connection.request(method, path, body, {"Content-Type": "application/json"} | (headers or {}))
            response = connection.getresponse()
            return response.status, dict(response.getheaders()), response.read()
        finally:
            connection.close()

    def post(self, path, body, **options):
        status, _, content = self.request("POST", path, body, **options)
        return status, json.loads(content)

    def metrics(self):
        text = self.request("GET", "/metrics")[2].decode()
        return {m[1]: float(m[2]) for m in re.finditer(r"^whit:(\w+)\{[^}]*\} (\S+)$", text, re.M)}

    def stop(self, number=signal.SIGTERM, timeout=30):
        if self.process.poll() is None:
            self.process.send_signal(number)
        status = self.process.wait(timeout)
        self.process.stdout.close()
        if not self.log.closed:
            self.log.seek(0)
            self.log_text = self.log.read().decode()
            self.log.close()
        return status


class ServeTest(unittest.TestCase):
    arguments = ()
    chat = True

    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.folder.cleanup)
        cls.server = Server(tiny_model(cls.folder.name), "--served-model-name", "tiny", *cls.arguments)
        cls.addClassCleanup(cls.server.stop)

    def completion(self, **fields):
        status, body = self.server.post("/v1/completions", {"prompt": "Once upon a time", "temperature": 0} | fields)
        self.assertEqual(status, 200, body)
        return body

    def refused(self, path, fields, param, status=400):
        got, body = self.server.post(path, fields)
        self.assertEqual(got, status, (fields, body))
        self.assertEqual(set(body), {"error"})
        self.assertEqual(set(body["error"]), {"message", "type", "param", "code"})
        self.assertEqual(body["error"]["param"], param, (fields, body))
