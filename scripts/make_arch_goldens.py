#!/usr/bin/env python3
"""Writes tests/golden/<name>/: tiny random models of each architecture and what Hugging Face computes with them.

usage: make_arch_goldens.py [OUT_DIR=tests/golden]        needs: torch, transformers, safetensors

Each model has seeded random weights, rounded to the dtype it is stored in; the expected values are computed in FP32 from
the stored weights with eager attention. config.json is written here, in the field names that published checkpoints use,
and transformers reads that same file: what it understands by each field is part of the test. The traps are wanted:
odd sizes, a head_dim that is not hidden_size / heads, a window that `use_sliding_window: false` disables.

expected.json (all positions are of `input_ids`, no BOS added):
  input_ids          [T]
  logits_last        [V]    logits of the last position
  hidden_last        [L+1][D]  residual stream at the last position: the embedding, then after each decoder layer
  hidden_norms       [L+1]  L2 norm of the same over all T positions
  final_norm_last    [D]    output of the last norm at the last position
  greedy_ids         [16]   greedy continuation, decoded step by step through a KV cache
  greedy_min_gap     the smallest distance between the two best logits on the way
"""
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

TOKENS, GREEDY_TOKENS = 24, 16
SMALLEST_GAP = 2e-3  # far above FP32 rounding, so that greedy_ids are determined

BASE = {
    "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "initializer_range": 0.02,
    "max_position_embeddings": 512, "num_hidden_layers": 2, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "tie_word_embeddings": False, "use_cache": True,
}
LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "attention_bias": False, "mlp_bias": False}
MISTRAL = {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}

MODELS = {
    # Sharded with an index; an odd vocabulary; no head_dim in the config.
    "llama_untied": dict(seed=1, dtype="bfloat16", shards=2, config=BASE | LLAMA | {
        "hidden_size": 64, "intermediate_size": 88, "num_attention_heads": 4, "num_key_value_heads": 2,
        "vocab_size": 257, "rope_scaling": None}),
    # Wavelengths 6, 20, 63, 199, … against 64/4 and 64/1: unscaled, interpolated and scaled frequencies all occur.
    "llama_rope_llama3": dict(seed=2, dtype="bfloat16", config=BASE | LLAMA | {
        "hidden_size": 64, "intermediate_size": 68, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "num_hidden_layers": 3, "vocab_size": 320, "tie_word_embeddings": True, "eos_token_id": [2, 3], "rope_scaling": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64}}),
    # The older spelling of the scaling type, multi-query attention, FP32 storage.
    "llama_rope_linear": dict(seed=3, dtype="float32", config=BASE | LLAMA | {
        "hidden_size": 64, "intermediate_size": 31, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 16,
        "vocab_size": 251, "tie_word_embeddings": True, "rms_norm_eps": 1e-6,
        "rope_scaling": {"type": "linear", "factor": 4.0}}),
    # heads * head_dim = 96 while hidden_size is 80; FP16 storage.
    "mistral": dict(seed=4, dtype="float16", config=BASE | MISTRAL | {
        "hidden_size": 80, "intermediate_size": 72, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 32,
        "vocab_size": 259, "tie_word_embeddings": True, "sliding_window": None, "rope_theta": 1000000.0}),
    # A window shorter than the prompt: position t sees t-7 … t. RoPE in the layout that transformers 5 writes.
    "mistral_window": dict(seed=5, dtype="bfloat16", config={k: v for k, v in (BASE | MISTRAL).items() if k != "rope_theta"} | {
        "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "vocab_size": 256, "sliding_window": 8, "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}}),
    # q/k/v biases, tied, and a window that is written down but switched off.
    "qwen2": dict(seed=6, dtype="bfloat16", config=BASE | {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "attention_dropout": 0.0,
        "hidden_size": 96, "intermediate_size": 36, "num_attention_heads": 6, "num_key_value_heads": 2, "vocab_size": 279,
        "tie_word_embeddings": True, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0,
        "sliding_window": 4, "use_sliding_window": False, "max_window_layers": 1}),
}


def digits(values):
    """Nested lists of FP32 values with the 9 significant digits that identify each."""
    if isinstance(values, torch.Tensor):
        values = values.tolist()
    return [digits(v) for v in values] if isinstance(values, list) else float(f"{values:.9g}")


def randomize(model, dtype, generator):
    """Weights of the size that keeps activations near 1, norms around 1, biases that matter; rounded to dtype."""
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("norm.weight"):
            value = 1 + 0.2 * noise
        elif name.endswith(".bias"):
            value = 0.5 * noise
        elif "embed_tokens" in name:
            value = 0.7 * noise
        else:
            value = 1.5 * noise / parameter.shape[1] ** 0.5
        parameter.data.copy_(value.to(dtype).float())


def save_weights(directory, tensors, shards):
    for old in directory.glob("model*"):
        old.unlink()
    if shards == 1:
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
        return
    names = sorted(tensors)
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        part = names[len(names) * shard // shards:len(names) * (shard + 1) // shards]
        save_file({n: tensors[n] for n in part}, directory / file, metadata={"format": "pt"})
        weight_map |= {n: file for n in part}
    total = sum(t.numel() * t.element_size() for t in tensors.values())
    write_json(directory / "model.safetensors.index.json",
               {"metadata": {"total_size": total}, "weight_map": weight_map})


def write_json(path, value, indent=2):
    path.write_text(json.dumps(value, indent=indent) + "\n")


def greedy(model, ids):
    """(ids, smallest gap between the best two logits) of the greedy continuation through a KV cache."""
    out, cache, step, gap = [], None, ids, float("inf")
    for _ in range(GREEDY_TOKENS):
        result = model(step, past_key_values=cache, use_cache=True)
        cache, best = result.past_key_values, result.logits[0, -1].topk(2)
        gap = min(gap, (best.values[0] - best.values[1]).item())
        out.append(best.indices[0].item())
        step = best.indices[:1].view(1, 1)
    return out, gap


@torch.no_grad()
def make(directory, seed, dtype, config, shards=1):
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "config.json", config | {"torch_dtype": dtype})
    write_json(directory / "generation_config.json", {k: config[k] for k in ("bos_token_id", "eos_token_id")})
    generator = torch.Generator().manual_seed(seed)
    read = AutoConfig.from_pretrained(directory)
    model = AutoModelForCausalLM.from_config(read, dtype=torch.float32, attn_implementation="eager").eval()
    randomize(model, getattr(torch, dtype), generator)
    tensors = {n: p.to(getattr(torch, dtype)).contiguous() for n, p in model.named_parameters()}
    assert config["tie_word_embeddings"] == ("lm_head.weight" not in tensors)
    save_weights(directory, tensors, shards)

    ids = torch.randint(4, config["vocab_size"], (1, TOKENS), generator=generator)
    residual = []
    hooks = [model.model.embed_tokens.register_forward_hook(lambda _m, _i, out: residual.append(out[0]))]
    hooks += [layer.register_forward_hook(lambda _m, _i, out: residual.append((out if torch.is_tensor(out) else out[0])[0]))
              for layer in model.model.layers]
    final = []
    hooks.append(model.model.norm.register_forward_hook(lambda _m, _i, out: final.append(out[0, -1])))
    logits = model(ids, use_cache=False).logits[0, -1]
    for hook in hooks:
        hook.remove()
    continuation, gap = greedy(model, ids)
    assert gap > SMALLEST_GAP, f"{directory.name}: greedy choice decided by {gap}; take another seed"
    expected = {
        "input_ids": ids[0].tolist(), "logits_last": digits(logits), "hidden_last": digits([r[-1].tolist() for r in residual]),
        "hidden_norms": digits([r.norm().item() for r in residual]), "final_norm_last": digits(final[0]),
        "greedy_ids": continuation, "greedy_min_gap": digits(gap),
    }
    write_json(directory / "expected.json", expected, indent=None)
    size = sum(f.stat().st_size for f in directory.glob("*.safetensors"))
    assert size < 200_000, f"{directory.name}: {size} bytes of weights"
    print(f"{directory.name}: {len(tensors)} tensors, {size} bytes, logits std {logits.std():.3f}, greedy gap {gap:.4f}")


if __name__ == "__main__":
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent / "tests" / "golden"
    for name, spec in MODELS.items():
        make(root / name, **spec)
