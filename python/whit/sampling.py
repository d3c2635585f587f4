"""How the next token is chosen and when an answer ends."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import _checks, _native

_NOT_SUPPORTED = {
    "bad": None, "bad_token_ids": None, "embedding_bias": None, "logits_processor": None, "best_of": None,
    "use_beam_search": False, "top_p_min": None, "top_p_reset_ids": None, "top_p_decay": None, "min_tokens": None,
    "beam_search_diversity_rate": None, "length_penalty": None, "early_stopping": None, "no_repeat_ngram_size": None,
    "guided_decoding": None,
}


@dataclass(kw_only=True)
class SamplingParams:
    """What one request asks for; TensorRT-LLM's names and defaults.

    With temperature, top_k and top_p all None the likeliest token is taken every time, as in
    TensorRT-LLM; naming any of them samples, the others then being off.

    Raises, when made: TypeError for a value of the wrong type or an unknown name, ValueError for
    one out of range, UnsupportedError for one that is known but cannot be honoured.
    """

    end_id: int | None = None
    """One more token id that ends the answer; the model's own always do (but see ignore_eos)."""
    pad_id: int | None = None
    """Accepted and not needed: batches are not padded."""
    max_tokens: int = 32
    """At most so many tokens, ≥ 1; lowered to what the context has room for."""
    bad: str | Sequence[str] | None = None
    bad_token_ids: Sequence[int] | None = None
    stop: str | Sequence[str] | None = None
    """Texts that end the answer; they are not part of it (but see include_stop_str_in_output)."""
    stop_token_ids: Sequence[int] | None = None
    """Token ids that end the answer, whatever ignore_eos says."""
    include_stop_str_in_output: bool = False
    embedding_bias: Any = None
    logits_processor: Any = None
    logit_bias: Mapping[int, float] | None = None
    """Added to the logits of these token ids."""
    n: int = 1
    """Answers to each prompt. With a seed, answer i is sampled with seed + i."""
    best_of: int | None = None
    use_beam_search: bool = False
    top_k: int | None = None
    """Sample from the k likeliest tokens; 0 or None: from all."""
    top_p: float | None = None
    """Sample from the fewest tokens whose probabilities reach p, in (0, 1]."""
    top_p_min: float | None = None
    top_p_reset_ids: int | None = None
    top_p_decay: float | None = None
    seed: int | None = None
    """0 … 2**64 − 1; None: another one each time."""
    temperature: float | None = None
    """≥ 0; 0 takes the likeliest token."""
    min_tokens: int | None = None
    beam_search_diversity_rate: float | None = None
    repetition_penalty: float | None = None
    """> 0, of tokens of prompt and answer; 1 is off."""
    presence_penalty: float | None = None
    """−2 … 2, subtracted from the logits of tokens of the answer; 0 is off."""
    frequency_penalty: float | None = None
    """−2 … 2, times a token's count in the answer; 0 is off."""
    length_penalty: float | None = None
    early_stopping: int | None = None
    no_repeat_ngram_size: int | None = None
    min_p: float | None = None
    """Sample from tokens with at least min_p times the largest probability, 0 … 1."""
    logprobs: int | None = None
    """Log-probabilities of each chosen token and of the so many likeliest, 0 … 20."""
    prompt_logprobs: int | None = None
    """The same of the prompt's tokens; a cached beginning of the prompt is not used then."""
    return_context_logits: bool = False
    """RequestOutput.context_logits: float32 [prompt tokens, V]; a cached beginning of the prompt is not used then."""
    return_generation_logits: bool = False
    """CompletionOutput.generation_logits: float32 [tokens, V], what each token was chosen from."""
    exclude_input_from_output: bool = True
    """False: token_ids and text begin with the prompt's."""
    guided_decoding: Any = None
    ignore_eos: bool = False
    """End-of-sequence tokens do not end the answer."""
    detokenize: bool = True
    """False: text stays empty."""
    add_special_tokens: bool = True
    """Whether a text prompt gets what the model's tokenizer puts around a text."""
    truncate_prompt_tokens: int | None = None
    """Keeps only the last so many tokens of a prompt, ≥ 1."""
    skip_special_tokens: bool = True
    """Special tokens add nothing to the text."""
    spaces_between_special_tokens: bool = True

    def __post_init__(self) -> None:
        _checks.only_default("SamplingParams", vars(self), _NOT_SUPPORTED, "no such decoding is implemented")
        _checks.only_default("SamplingParams", vars(self), {"spaces_between_special_tokens": True},
                             "text is what the tokenizer's decoder makes of it")
        _checks.integer("max_tokens", self.max_tokens, 1)
        _checks.integer("n", self.n, 1, 1024)
        for name, least, most in (("end_id", -1, 2**31 - 1), ("pad_id", -1, 2**31 - 1), ("top_k", -1, _checks.INT64_MAX),
                                  ("seed", 0, 2**64 - 1), ("logprobs", 0, 20), ("prompt_logprobs", 0, 20),
                                  ("truncate_prompt_tokens", 1, _checks.INT64_MAX)):
            if getattr(self, name) is not None:
                _checks.integer(name, getattr(self, name), least, most)
        for name in ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"):
            if getattr(self, name) is not None and not math.isfinite(_checks.real(name, getattr(self, name))):
                raise ValueError(f"{name} is {getattr(self, name)}, expected a finite number")
        for name in ("include_stop_str_in_output", "return_context_logits", "return_generation_logits",
                     "exclude_input_from_output", "ignore_eos", "detokenize", "add_special_tokens", "skip_special_tokens"):
            _checks.flag(name, getattr(self, name))
        self._stop_texts()
        self._logit_bias()
        if self.stop_token_ids is not None:
            _checks.token_ids("stop_token_ids", self.stop_token_ids)

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken every time."""
        if self.temperature is None and self.top_k is None and self.top_p is None:
            return True
        return self.top_k == 1 or self.temperature == 0

    def _stop_texts(self) -> list[str]:
        if self.stop is None:
            return []
        if isinstance(self.stop, str):
            return [_checks.text("stop", self.stop)]
        try:
            texts = list(self.stop)
        except TypeError:
            raise TypeError(f"stop is {self.stop!r}, expected a str or a list of them") from None
        return [_checks.text(f"stop[{i}]", each) for i, each in enumerate(texts)]

    def _logit_bias(self) -> dict[int, float]:
        if self.logit_bias is None:
            return {}
        if not isinstance(self.logit_bias, Mapping):
            raise TypeError(f"logit_bias is {self.logit_bias!r}, expected a mapping of token ids to numbers")
        return {_checks.integer("a token id of logit_bias", key, 0, 2**31 - 1): _checks.real(f"logit_bias[{key}]", value)
                for key, value in self.logit_bias.items()}

    def _to_native(self) -> _native.SamplingParams:
        self.__post_init__()  # fields may have been set since
        native = _native.SamplingParams()
        native.max_tokens = int(self.max_tokens)
        native.temperature = 0.0 if self.greedy else 1.0 if self.temperature is None else float(self.temperature)
        native.top_k = max(0, int(self.top_k or 0))
        native.top_p = 1.0 if self.top_p is None else float(self.top_p)
        native.min_p = float(self.min_p or 0.0)
        native.repetition_penalty = 1.0 if self.repetition_penalty is None else float(self.repetition_penalty)
        native.presence_penalty = float(self.presence_penalty or 0.0)
        native.frequency_penalty = float(self.frequency_penalty or 0.0)
        native.seed = None if self.seed is None else int(self.seed)
        native.stop = self._stop_texts()
        native.ignore_eos = self.ignore_eos
        ends = [] if self.stop_token_ids is None else _checks.token_ids("stop_token_ids", self.stop_token_ids)
        if self.end_id is not None and self.end_id >= 0 and not self.ignore_eos:
            ends.append(int(self.end_id))
        native.stop_token_ids = ends
        native.include_stop_str_in_output = self.include_stop_str_in_output
        native.skip_special_tokens = self.skip_special_tokens
        native.logit_bias = self._logit_bias()
        native.logprobs = -1 if self.logprobs is None else int(self.logprobs)
        native.return_generation_logits = self.return_generation_logits
        native.return_context_logits = self.return_context_logits or self.prompt_logprobs is not None
        native.n = int(self.n)
        return native
