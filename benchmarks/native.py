"""The C++ runtime beside the Python package, and beside ONNX Runtime alone.

    scripts/native
    .venv/bin/python benchmarks/native.py build/w8a8.bundle [--only speed startup memory]

C++ and Python take turns on every prompt, each in its own process, so that a slow moment of the
machine hits both; their tokens are compared. A bare session is one over the same graph, opened the
same way and called with the same tokens, by a program that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from measuring import RESULTS, spread, workload, write_result
from specplug import History, SamplingParams, SpeculativeDecoder
from specplug.bundle import Bundle
from tests_support.native import BUILD, Native

TOKENS, REPEATS = 64, 3
SETTINGS: dict[str, tuple[str, int | str, dict[str, Any], str]] = {
    "plain": ("none", 0, {}, "specbench-dev"),
    "quoting, auto": ("auto", "auto", {}, "quoting"),
    "sampled, top-p 0.9": ("none", 0, {"temperature": 0.8, "top_p": 0.9}, "specbench-dev"),
    "sampled, untruncated": ("none", 0, {"temperature": 0.8}, "specbench-dev"),
}


def speed(bundle: Path, prompts: int) -> dict[str, Any]:
    tokenizer = Bundle.open(bundle).tokenizer()
    assert tokenizer
    found = {}
    with Native(bundle, history_tokens=0) as native:
        for name, (drafter, length, sampling, source) in SETTINGS.items():
            items = workload(source)
            texts = [item["prompt"] for item in items[:: len(items) // prompts]]
            ids = [tokenizer.encode_prompt(text) for text in texts]
            python, cpp, ratios, outside = [], [], [], []
            request = {"drafter": drafter, "draft_tokens": -1 if length == "auto" else length}
            with SpeculativeDecoder.from_bundle(
                bundle, drafter=drafter, draft_tokens=length, history=History(0)
            ) as decoder:

                def theirs(prompt: list[int], max_tokens: int = TOKENS) -> Any:
                    return decoder.generate(
                        prompt,
                        max_tokens=max_tokens,
                        sampling=SamplingParams(**sampling),  # noqa: B023
                    )

                def ours(prompt: list[int], max_tokens: int = TOKENS) -> Any:
                    return native.ask(
                        "generate",
                        decoder=name,  # noqa: B023
                        prompt=prompt,
                        max_tokens=max_tokens,
                        **request,  # noqa: B023
                        **sampling,  # noqa: B023
                    )

                theirs(ids[0], 16), ours(ids[0], 16)  # warm up
                for repeat in range(REPEATS):
                    for prompt in [one for one in ids if len(one) < 1000]:
                        turns = [theirs, ours] if repeat % 2 else [ours, theirs]
                        done = {turn: turn(prompt) for turn in turns}
                        stats = done[ours]["stats"]
                        assert done[ours]["tokens"] == list(done[theirs].token_ids), prompt[:8]
                        if len(done[ours]["tokens"]) < TOKENS // 2:
                            continue
                        cpp.append((stats["new_tokens"] - 1) / stats["decode_seconds"])
                        python.append(done[theirs].stats.decode_tokens_per_second)
                        ratios.append(cpp[-1] / python[-1])
                        outside.append(1 - stats["engine_seconds"] / stats["decode_seconds"])
            found[name] = {
                "cpp_tokens_per_second": spread(cpp),
                "python_tokens_per_second": spread(python),
                "cpp_over_python": spread(ratios),
                "outside_the_engine": spread(outside),
            }
            print(name, json.dumps(found[name]), file=sys.stderr)
    return found


def bare(bundle: Path, tokens: int) -> dict[str, float]:
    program = BUILD / "release" / "tests" / "bare"
    done = subprocess.run(
        [program, bundle, str(tokens)], capture_output=True, text=True, check=True
    )
    return dict(json.loads(done.stdout))


def startup(bundle: Path) -> dict[str, Any]:
    """Seconds from nothing open to a first token, each in a new process; files are in memory."""
    alone, ours = [], []
    for _ in range(9):
        alone.append(bare(bundle, 0)["seconds"])
        with Native(bundle, info=False) as native:
            opening = native.seconds
            native.ask("generate", prompt=[*range(1, 9)], max_tokens=1, drafter="none")
            ours.append(opening + native.seconds)
    return {
        "bare_session_seconds": spread(alone),
        "specplug_seconds": spread(ours),
        "specplug_over_bare": spread(o / a for o, a in zip(ours, alone, strict=True)),
    }


def memory(bundle: Path) -> dict[str, Any]:
    """Resident bytes after 64 tokens; ``bare`` is weights, cache and ONNX Runtime's own."""
    alone, ours, text = [], [], []
    for _ in range(5):
        alone.append(bare(bundle, 64)["resident"])
        with Native(bundle, info=False) as native:
            native.ask(
                "generate", prompt=[*range(1, 9)], max_tokens=64, drafter="auto", draft_tokens=0
            )
            ours.append(native.ask("memory")["VmRSS"])
            native.ask("encode", text="a")
            text.append(native.ask("memory")["VmRSS"] - ours[-1])
    return {
        "bare_bytes": spread(alone),
        "specplug_bytes": spread(ours),
        "tokenizer_bytes": spread(text),
        "specplug_over_bare": spread(o / a for o, a in zip(ours, alone, strict=True)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--only", nargs="+", default=["speed", "startup", "memory"])
    parser.add_argument("--prompts", type=int, default=6)
    given = parser.parse_args()
    path = RESULTS / "native.json"
    known = json.loads(path.read_text())["bundles"] if path.exists() else {}
    name = Bundle.open(given.bundle).manifest.target.precision
    found = known.setdefault(name, {})
    if "speed" in given.only:
        found["speed"] = speed(given.bundle, given.prompts)
    if "startup" in given.only:
        found["startup"] = startup(given.bundle)
    if "memory" in given.only:
        found["memory"] = memory(given.bundle)
    library = (BUILD / "install" / "lib" / "libspecplug.so").resolve()
    write_result("native", {"library_bytes": library.stat().st_size, "bundles": known})


if __name__ == "__main__":
    main()
