"""Writes kernels/tests/vectors/: inputs and results of ARITHMETIC.md, 1. to 9., bit for bit.

    python make_vectors.py            # all files, half a minute on one core; needs nothing but Python
    python make_vectors.py gate pack  # some of them

Floats are the bits of binary32 (8 hex digits) or binary16 (4), integers of 8 bits have 2 digits, all in strings of
words, where `w*n` is n times w; codes as stored are strings of digits. Every case has a name. Results come from
`arithmetic`, inputs from fixed seeds.
"""

import json
import sys
from pathlib import Path

import vectors_dense
import vectors_experts
import vectors_packed

FOLDER = Path(__file__).resolve().parent / "../../kernels/tests/vectors"
FILES = {**vectors_dense.FILES, **vectors_packed.FILES, **vectors_experts.FILES}


def main():
    FOLDER.mkdir(exist_ok=True)
    for name in sys.argv[1:] or FILES:
        lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in FILES[name]())
        (FOLDER / f"{name}.json").write_text(f"[\n{lines}\n]\n")
        print(f"{name}: {(FOLDER / f'{name}.json').stat().st_size} bytes")


if __name__ == "__main__":
    main()
