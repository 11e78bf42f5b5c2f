"""Plain decoding, specplug beside ONNX Runtime GenAI, on the same weights.

    benchmarks/peers/setup_genai.sh
    .venv/bin/python benchmarks/plain_vs_genai.py FP32.bundle INT4.bundle [--repeats 5]

The two take turns on every prompt, so that a slow moment of the machine hits both. GenAI runs in
its own environment and process; while one decodes the other sleeps.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
from pathlib import Path
from typing import Any

from measuring import spread, workload, write_result
from specplug import SpeculativeDecoder

PEER = Path(__file__).parent.parent / ".peers" / "genai"
PROMPTS, TOKENS = 12, 96


class Peer:
    """A running genai_worker."""

    def __init__(self, precision: str) -> None:
        command = [
            str(PEER / "venv/bin/python"),
            str(Path(__file__).parent / "peers/genai_worker.py"),
        ]
        self._process = subprocess.Popen(
            [*command, str(PEER / precision)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.versions = self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout
        return dict(json.loads(self._process.stdout.readline()))

    def decode(self, token_ids: list[int], max_tokens: int) -> dict[str, Any]:
        assert self._process.stdin
        print(
            json.dumps({"token_ids": token_ids, "max_tokens": max_tokens}),
            file=self._process.stdin,
            flush=True,
        )
        return self._read()

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()


def ours(decoder: SpeculativeDecoder, token_ids: list[int]) -> float:
    stats = decoder.generate(token_ids, max_tokens=TOKENS).stats
    return stats.decode_tokens_per_second


def peers(peer: Peer, token_ids: list[int]) -> float:
    answer = peer.decode(token_ids, TOKENS)
    return (len(answer["token_ids"]) - 1) / answer["decode_seconds"]


def compare(bundle: str, precision: str, narrow: bool, repeats: int) -> dict[str, Any]:
    peer = Peer(precision)
    decoder = SpeculativeDecoder.from_bundle(bundle, drafter="none", allow_narrow=narrow)
    prompts = [
        decoder.encode(item["prompt"]) for item in workload("specbench-dev")[:: 60 // PROMPTS]
    ]
    prompts = [prompt for prompt in prompts if len(prompt) < 1000]
    ours(decoder, prompts[0]), peers(peer, prompts[0])  # warm up
    mine: list[float] = []
    theirs: list[float] = []
    for repeat in range(repeats):
        for number, prompt in enumerate(prompts):
            if (repeat + number) % 2:
                mine.append(ours(decoder, prompt))
                theirs.append(peers(peer, prompt))
            else:
                theirs.append(peers(peer, prompt))
                mine.append(ours(decoder, prompt))
    ratios = [a / b for a, b in zip(mine, theirs, strict=True)]
    peer.close()
    decoder.close()
    return {
        "precision": precision,
        "allow_narrow": narrow,
        "specplug_tokens_per_second": spread(mine),
        "genai_tokens_per_second": spread(theirs),
        "ratio": spread(ratios),
        "ratio_geometric_mean": statistics.geometric_mean(ratios),
        "peer": peer.versions,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("fp32")
    parser.add_argument("int4")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    runs = [
        compare(arguments.fp32, "fp32", False, arguments.repeats),
        compare(arguments.int4, "int4", False, arguments.repeats),
        compare(arguments.int4, "int4", True, arguments.repeats),
    ]
    for run in runs:
        print(
            f"{run['precision']}{' narrow' if run['allow_narrow'] else '':8s}"
            f" specplug {run['specplug_tokens_per_second']['median']:6.1f}"
            f" genai {run['genai_tokens_per_second']['median']:6.1f} tokens/s,"
            f" ratio {run['ratio']['median']:.2f}"
            f" ({run['ratio']['q1']:.2f} to {run['ratio']['q3']:.2f})"
        )
    print(write_result("plain_vs_genai", {"new_tokens": TOKENS, "runs": runs}))


if __name__ == "__main__":
    main()
