"""What the tests of the package share: tiny models and engines of them, in a folder and a cache of their own."""
import os
import tempfile
import unittest
from pathlib import Path

import whit
from cli_support import tiny_model

ROOT = Path(__file__).resolve().parent.parent.parent
AWQ = {"quant_mode": whit.QuantMode.AWQ, "quant_policy": {"weight_dtype": "int4", "activation_dtype": "int8"}}
FP8 = {"quant_mode": whit.QuantMode.AWQ, "quant_policy": {"weight_dtype": "fp8", "activation_dtype": "fp8"}}
W4AFP8 = {"quant_mode": whit.QuantMode.AWQ, "quant_policy": {"weight_dtype": "int4", "activation_dtype": "fp8"}}
SMOOTHQUANT = {"quant_mode": whit.QuantMode.SMOOTHQUANT, "quant_policy": {"weight_dtype": "int8", "activation_dtype": "int8"}}
QUICK = {"calib_samples": 4, "calib_length": 32, "group_size": 32, "progress": False}


class ModelTest(unittest.TestCase):
    """`model` is a tiny Hugging Face directory; engines are cached beside it."""

    @classmethod
    def setUpClass(cls):
        cls.folder = Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
        before = os.environ.get("XDG_CACHE_HOME")
        os.environ["XDG_CACHE_HOME"] = str(cls.folder / "cache")
        cls.addClassCleanup(lambda: os.environ.pop("XDG_CACHE_HOME") if before is None
                            else os.environ.update(XDG_CACHE_HOME=before))
        cls.model = tiny_model(cls.folder)

    def engine(self, **arguments):
        """An engine of the tiny model: as it is stored, or quantized with few samples."""
        engine = whit.LLMEngine.from_pretrained(self.model, **QUICK | arguments)
        self.addCleanup(engine.shutdown)
        return engine
