#!/usr/bin/env python3
"""Writes tests/golden/smol/expected.json: what Hugging Face transformers computes with the default model in FP32.

usage: make_smol_golden.py HF_DIR [OUT=tests/golden/smol/expected.json]      needs: torch, transformers

HF_DIR is SmolLM2-135M-Instruct, dequantized from the GGUF that scripts/fetch_model.sh fetches.
expected.json, for each prompt (special tokens in the text are parsed, no BOS added):
  prompt, ids         the text and its token ids
  last_top10          [{id, logit}] of the last position, best first
  last_logits_probe   {id: logit} at every 3072nd id
  last_logsumexp      of the last position's logits
  nll                 [T-1] −log p of each token but the first
  greedy_ids, greedy_text, greedy_gap   32 greedy tokens, and the distance between the two best logits at each
  hidden_norm_last    [L+1] L2 norm of the residual stream at the last position: the embedding, then after each layer
"""
import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

GREEDY_TOKENS, PROBE_STRIDE = 32, 3072
PROMPTS = [
    "The capital of France is",
    'def fibonacci(n):\n    """Return the n-th Fibonacci number."""\n',
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nWhat is 2+2?<|im_end|>\n"
    "<|im_start|>assistant\n",
]


def digits(value):
    """The 9 significant digits that identify an FP32 value."""
    return [digits(v) for v in value] if isinstance(value, list) else float(f"{value:.9g}")


@torch.no_grad()
def record(model, tokenizer, prompt):
    ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt").input_ids
    residual = []
    hooks = [model.model.embed_tokens.register_forward_hook(lambda _m, _i, out: residual.append(out[0, -1]))]
    hooks += [layer.register_forward_hook(
        lambda _m, _i, out: residual.append((out if torch.is_tensor(out) else out[0])[0, -1]))
        for layer in model.model.layers]
    result = model(ids, use_cache=True)
    for hook in hooks:
        hook.remove()
    last, logprobs = result.logits[0, -1], result.logits[0].log_softmax(-1)
    top = last.topk(10)

    greedy, gaps, logits, cache = [], [], last, result.past_key_values
    for _ in range(GREEDY_TOKENS):
        best = logits.topk(2)
        greedy.append(best.indices[0].item())
        gaps.append((best.values[0] - best.values[1]).item())
        step = model(best.indices[:1].view(1, 1), past_key_values=cache, use_cache=True)
        logits, cache = step.logits[0, -1], step.past_key_values
    return {
        "prompt": prompt, "ids": ids[0].tolist(),
        "last_top10": [{"id": i, "logit": digits(v)} for i, v in zip(top.indices.tolist(), top.values.tolist())],
        "last_logits_probe": {str(i): digits(last[i].item()) for i in range(0, len(last), PROBE_STRIDE)},
        "last_logsumexp": digits(last.logsumexp(-1).item()),
        "nll": digits([-logprobs[t, ids[0, t + 1]].item() for t in range(ids.shape[1] - 1)]),
        "greedy_ids": greedy, "greedy_text": tokenizer.decode(greedy), "greedy_gap": digits(gaps),
        "hidden_norm_last": digits([r.norm().item() for r in residual]),
    }


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    default = Path(__file__).resolve().parent.parent / "tests" / "golden" / "smol" / "expected.json"
    out = Path(sys.argv[2]) if len(sys.argv) > 2 else default
    smol = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32, attn_implementation="eager").eval()
    vocabulary = AutoTokenizer.from_pretrained(sys.argv[1])
    out.parent.mkdir(parents=True, exist_ok=True)
    prompts = [record(smol, vocabulary, p) for p in PROMPTS]
    out.write_text(json.dumps({"dtype": "float32", "prompts": prompts}, indent=1, ensure_ascii=False) + "\n")
    print(f"{out}: {len(prompts)} prompts, smallest greedy gap {min(min(p['greedy_gap']) for p in prompts):.4f}")
