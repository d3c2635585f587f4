"""How an engine is built, and how it runs."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from . import _checks, _native


_KV_CACHE_DTYPES = ("auto", "f32", "f16", "bf16", "int8", "int4", "fp8")


def _kv_cache_dtype(name: str, value: Any) -> None:
    if _checks.text(name, value) not in _KV_CACHE_DTYPES:
        from .errors import UnsupportedError

        raise UnsupportedError(f"{name}={value!r} is not supported; the possible ones are {', '.join(_KV_CACHE_DTYPES)}")


@dataclass
class BuildConfig:
    """How an engine is built and run.

    The first group are TensorRT-LLM's names. Nothing has to be fixed when an engine is built, so
    they are limits of a run at most.
    """

    max_input_len: int | None = None
    """Accepted and not needed: prompts may fill the context."""
    max_seq_len: int | None = None
    """The longest context, prompt and answer, in tokens; None: the model's."""
    opt_batch_size: int | None = None
    max_batch_size: int | None = None
    """Answers that are generated together, at most 1024; others wait. None: 32."""
    max_beam_width: int = 1
    max_num_tokens: int | None = None

    engine_dir: str | os.PathLike[str] | None = None
    """Where the engine is written; None: a cache under $XDG_CACHE_HOME/whit or ~/.cache/whit."""
    head: str = "int8"
    """Embedding table and lm_head: "int8" or "bf16"."""
    symmetric: bool = False
    """int4 weights without zero points."""
    two_level: bool = False
    """int4 weights for int8 activations: a row's scales are multiples of one step; faster, a little less exact."""
    threads: int = 0
    """0: one for each CPU that the process may use."""
    isa: str = ""
    """"portable", "avx2" or "avx512"; "": the best that the CPU has."""
    backend: str = "cpu"
    """Where the model runs, and where it is calibrated and quantized (but by AUTO): "cpu", or "cuda" for an NVIDIA GPU."""
    kv_cache_dtype: str = "auto"
    """Keys and values: "auto" (the model's; of 16 bits what is fastest there), "f32", "f16", "bf16", "int8", "int4" or, with backend="cuda", "fp8"."""

    def __post_init__(self) -> None:
        _checks.only_default("BuildConfig", vars(self), {"max_beam_width": 1}, "beam search is not implemented")
        for name in ("max_input_len", "max_seq_len", "opt_batch_size", "max_batch_size", "max_num_tokens"):
            if getattr(self, name) is not None:
                _checks.integer(name, getattr(self, name), 1)
        _checks.text("head", self.head)
        _checks.flag("symmetric", self.symmetric)
        _checks.flag("two_level", self.two_level)
        _checks.integer("threads", self.threads, 0, 1024)
        _checks.text("isa", self.isa)
        _checks.text("backend", self.backend)
        _kv_cache_dtype("kv_cache_dtype", self.kv_cache_dtype)
        if self.engine_dir is not None:
            _checks.text("engine_dir", os.fspath(self.engine_dir))


@dataclass
class KvCacheConfig:
    """The cache of keys and values; TensorRT-LLM's names and defaults.

    The cache is made by the first request, in pages of 32 tokens: for a quarter of
    max_batch_size longest contexts, at most 1 GiB, but one such context at least. What it has no room
    for waits, so most of these have nothing to do and are refused where they ask for more.
    """

    enable_block_reuse: bool = True
    """Pages of prompts are kept and used for prompts that begin the same."""
    max_tokens: int | None = None
    """The longest context in tokens; the smaller one of this and max_seq_len counts."""
    max_attention_window: list[int] | None = None
    sink_token_length: int | None = None
    free_gpu_memory_fraction: float | None = 0.9
    """Accepted and not needed on a CPU."""
    host_cache_size: int | None = None
    enable_partial_reuse: bool = True
    copy_on_partial_reuse: bool = True
    dtype: str = "auto"
    """Of keys and values: "auto" (the model's; of 16 bits what is fastest there), "f32", "f16", "bf16", "int8" or "int4"."""
    tokens_per_block: int = 32
    """Accepted and not needed: pages have 32 tokens."""

    def __post_init__(self) -> None:
        _checks.only_default(
            "KvCacheConfig", vars(self),
            {"max_attention_window": None, "sink_token_length": None, "host_cache_size": None,
             "enable_partial_reuse": True, "copy_on_partial_reuse": True},
            "the cache holds whole contexts in pages of one size")
        _checks.flag("enable_block_reuse", self.enable_block_reuse)
        _kv_cache_dtype("dtype", self.dtype)
        if self.max_tokens is not None:
            _checks.integer("max_tokens", self.max_tokens, 1)
        _checks.integer("tokens_per_block", self.tokens_per_block, 1)


def native_config(build: BuildConfig, *, calib: Any, calib_samples: Any, calib_length: Any, seed: Any,
                  group_size: Any) -> _native.BuildConfig:
    """All settings as the engine takes them."""
    if not isinstance(build, BuildConfig):
        raise TypeError(f"build_config is {build!r}, expected a whit.BuildConfig")
    build.__post_init__()  # fields may have been set since
    native = _native.BuildConfig()
    native.calib = _checks.text("calib", os.fspath(calib) if isinstance(calib, os.PathLike) else calib)
    native.calib_samples = _checks.integer("calib_samples", calib_samples, 1)
    native.calib_length = _checks.integer("calib_length", calib_length, 2)
    native.seed = _checks.integer("seed", seed, 0, 2**64 - 1)
    native.group_size = _checks.integer("group_size", group_size, 1)
    native.symmetric = build.symmetric
    native.two_level = build.two_level
    native.head = build.head
    native.engine_dir = "" if build.engine_dir is None else os.fspath(build.engine_dir)
    native.threads = int(build.threads)
    native.max_model_len = 0 if build.max_seq_len is None else int(build.max_seq_len)
    native.isa = build.isa
    native.backend = build.backend
    native.kv_cache_dtype = build.kv_cache_dtype
    if build.max_batch_size is not None:
        native.max_batch_size = _checks.integer("max_batch_size", build.max_batch_size, 1, 1024)
    return native
