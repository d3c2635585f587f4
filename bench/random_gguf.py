"""A GGUF file of a 1.1B Llama shape with random weights in f16, for bench/peers.py: every program reads the same bytes.

The tokenizer is another file's. Format: the GGUF specification, version 3.
"""
import random
import struct

HIDDEN, FEED_FORWARD, LAYERS, HEADS, KV_HEADS, CONTEXT = 2048, 5632, 22, 32, 4, 2048  # TinyLlama's
UINT32, FLOAT32, STRING, ARRAY = 4, 6, 8, 9
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, UINT32: 4, 5: 4, FLOAT32: 4, 7: 1, 10: 8, 11: 8, 12: 8}
F32, F16 = 0, 1
ALIGNMENT = 32


def string(text):
    return struct.pack("<Q", len(text.encode())) + text.encode()


def end_of_value(data, at, kind):
    if kind == STRING:
        return at + 8 + struct.unpack_from("<Q", data, at)[0]
    if kind != ARRAY:
        return at + SIZES[kind]
    kind, count = struct.unpack_from("<IQ", data, at)
    at += 12
    if kind in SIZES:
        return at + count * SIZES[kind]
    for _ in range(count):
        at = end_of_value(data, at, kind)
    return at


def tokenizer_of(path):
    """The file's tokenizer as entries of a header, how many they are, and the vocabulary's size."""
    data = path.read_bytes()
    entries, words = [], 0
    at = 24
    for _ in range(struct.unpack_from("<Q", data, 16)[0]):
        begin = at
        at = end_of_value(data, at, STRING)
        key = data[begin + 8:at].decode()
        kind, = struct.unpack_from("<I", data, at)
        at = end_of_value(data, at + 4, kind)
        if key.startswith("tokenizer."):
            entries.append(data[begin:at])
        if key == "tokenizer.ggml.tokens":
            words, = struct.unpack_from("<Q", data, begin + 8 + len(key) + 8)
    return b"".join(entries), len(entries), words


def write(path, tokenizer):
    entries, count, vocabulary = tokenizer_of(tokenizer)
    numbers = {"context_length": CONTEXT, "embedding_length": HIDDEN, "block_count": LAYERS, "feed_forward_length": FEED_FORWARD,
               "attention.head_count": HEADS, "attention.head_count_kv": KV_HEADS, "rope.dimension_count": HIDDEN // HEADS,
               "vocab_size": vocabulary}
    header = [string("general.architecture") + struct.pack("<I", STRING) + string("llama"),
              string("general.file_type") + struct.pack("<II", UINT32, F16)]
    header += [string(f"llama.{key}") + struct.pack("<II", UINT32, value) for key, value in numbers.items()]
    header += [string(f"llama.{key}") + struct.pack("<If", FLOAT32, value)
               for key, value in (("attention.layer_norm_rms_epsilon", 1e-5), ("rope.freq_base", 10000.0))]

    keys_values = KV_HEADS * HIDDEN // HEADS
    tensors = {"token_embd.weight": (vocabulary, HIDDEN), "output.weight": (vocabulary, HIDDEN), "output_norm.weight": (HIDDEN,)}
    for layer in range(LAYERS):
        for name, shape in (("attn_norm", (HIDDEN,)), ("ffn_norm", (HIDDEN,)), ("attn_q", (HIDDEN, HIDDEN)),
                            ("attn_k", (keys_values, HIDDEN)), ("attn_v", (keys_values, HIDDEN)), ("attn_output", (HIDDEN, HIDDEN)),
                            ("ffn_gate", (FEED_FORWARD, HIDDEN)), ("ffn_up", (FEED_FORWARD, HIDDEN)), ("ffn_down", (HIDDEN, FEED_FORWARD))):
            tensors[f"blk.{layer}.{name}.weight"] = shape
    infos, sizes, offset = [], [], 0
    for name, shape in tensors.items():
        size = 4 * HIDDEN if len(shape) == 1 else 2 * shape[0] * shape[1]
        infos.append(string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape), F32 if len(shape) == 1 else F16, offset))
        sizes.append(size)
        offset += -(-size // ALIGNMENT) * ALIGNMENT

    source = random.Random(7)
    values = 1 << 20  # again and again, each tensor from another place: speed does not see it
    weights = struct.pack(f"<{values}e", *(source.gauss(0, 0.02) for _ in range(values)))
    with open(path, "wb") as file:
        file.write(struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(header) + count) + b"".join(header) + entries + b"".join(infos))
        file.write(bytes(-file.tell() % ALIGNMENT))
        for shape, size in zip(tensors.values(), sizes):
            if len(shape) == 1:
                file.write(struct.pack(f"<{HIDDEN}f", *[1.0] * HIDDEN))
            else:
                begin = 2 * source.randrange(values)
                left = size
                while left > 0:
                    part = weights[begin:begin + left]
                    file.write(part)
                    left -= len(part)
                    begin = 0
            file.write(bytes(-size % ALIGNMENT))
