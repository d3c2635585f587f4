#!/usr/bin/env python3
"""Writes src/checkpoint/testdata/dequantize_vectors.json: for every block type, random blocks and the f32 values that
PyPI gguf's numpy reference makes of them, both as hexadecimal bytes. Needs: gguf, numpy.
usage: make_dequantize_vectors.py OUT.json"""
import json
import sys

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as T
from gguf.quants import dequantize

# Byte offsets of each type's f16 scales; random bits there would make infinities.
SCALES = {
    T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0], T.Q2_K: [80, 82], T.Q3_K: [108],
    T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208], T.IQ4_NL: [0], T.IQ4_XS: [0],
}


def main() -> None:
    rng = np.random.default_rng(1)
    vectors = []
    for kind, offsets in SCALES.items():
        elements, size = GGML_QUANT_SIZES[kind]
        count = 4 if elements == 32 else 2
        blocks = rng.integers(0, 256, (count, size), dtype=np.uint8)
        for offset in offsets:
            scales = rng.normal(0, 0.05, (count, 1)).astype(np.float16)
            scales[0] *= np.float16(1e-5)  # a subnormal scale
            blocks[:, offset:offset + 2] = scales.view(np.uint8)
        values = np.ascontiguousarray(dequantize(blocks, kind))
        vectors.append({"type": kind.name, "data": blocks.tobytes().hex(), "f32": values.tobytes().hex()})
    halves = np.concatenate([np.arange(0, 1 << 16, 97), [0, 1, 0x3ff, 0x400, 0x7bff, 0x8000, 0x8001, 0xfbff]])
    halves = halves[(halves & 0x7c00) != 0x7c00].astype(np.uint16)
    for kind, values in ((T.F16, halves.view(np.float16).astype(np.float32)),
                         (T.BF16, (halves.astype(np.uint32) << 16).view(np.float32))):
        vectors.append({"type": kind.name, "data": halves.tobytes().hex(), "f32": values.tobytes().hex()})
    with open(sys.argv[1], "w") as out:
        out.write("[\n" + ",\n".join(json.dumps(v) for v in vectors) + "\n]\n")


main()
