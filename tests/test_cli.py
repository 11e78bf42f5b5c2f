"""The command line as a user meets it: real processes, both streams, exit codes."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from specplug import SamplingParams, SpeculativeDecoder
from tests_support.command import specplug

PROMPT = "one two three one two"


def test_export_inspect_generate(tiny_source: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "made.bundle"
    exported = specplug(
        "export", tiny_source, "-o", bundle, "--precision", "fp32", "--self-draft", "int4"
    )
    assert exported.returncode == 0, exported.stderr
    assert exported.stdout == f"{bundle}\n"
    assert "target: llama 0M in fp32" in exported.stderr
    assert "draft: llama 0M in int4" in exported.stderr
    assert specplug("export", tiny_source, "-o", bundle).returncode == 1  # exists

    shown = specplug("inspect", bundle)
    assert shown.returncode == 0
    assert "exact from width" in shown.stdout
    manifest = json.loads(specplug("inspect", bundle, "--json").stdout)
    assert manifest["target"]["min_width"] == 2

    plain = specplug("generate", bundle, PROMPT, "--drafter", "none", "--max-tokens", "20")
    for drafter in ("ngram", "draft"):
        drafted = specplug("generate", bundle, PROMPT, "--drafter", drafter, "--max-tokens", "20")
        assert drafted.stdout == plain.stdout
        assert "tokens/s, acceptance length" in drafted.stderr
    assert "saved" not in plain.stderr


def test_export_from_onnx(tmp_path: Path) -> None:
    graph, bundle = Path(__file__).parent / "data" / "genai-int4", tmp_path / "made.bundle"
    exported = specplug("export", "--from-onnx", graph, "-o", bundle)
    assert exported.returncode == 0, exported.stderr
    assert "target: llama 0M in int4" in exported.stderr
    plain, drafted = (
        specplug("generate", bundle, PROMPT, "--max-tokens", "20", "--drafter", drafter)
        for drafter in ("none", "ngram")
    )
    assert plain.returncode == 0
    assert plain.stdout == drafted.stdout


def test_json_is_one_object_with_everything(tiny_bundle: Path) -> None:
    done = specplug(
        "generate", tiny_bundle, "-", "--json", "--raw", "--drafter", "draft",
        "--draft-tokens", "3", "--max-tokens", "25", text=PROMPT,
    )  # fmt: skip
    answer = json.loads(done.stdout)
    with SpeculativeDecoder.from_bundle(tiny_bundle, drafter="none") as decoder:
        expected = decoder.generate(PROMPT, chat=False, max_tokens=25)
    assert answer["text"] == expected.text
    assert answer["token_ids"] == list(expected.token_ids)
    assert answer["tokens_per_second"] > 0
    assert answer["prompt_tokens"] == len(PROMPT)
    assert answer["speculative_decoding"]["num_spec_tokens"] == 3
    assert answer["speculative_decoding"]["num_draft_tokens"] > 0


SAMPLED = ("--temperature", "0.8", "--top-p", "0.95", "--max-tokens", "20")


def test_a_seed_names_the_text(tiny_bundle: Path) -> None:
    def generate(*arguments: str) -> tuple[list[int], str]:
        done = specplug("generate", tiny_bundle, PROMPT, *SAMPLED, "--json", *arguments)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)["token_ids"], done.stderr

    drawn, notes = generate("--drafter", "draft")
    seed = re.search(r"--seed (\d+) gives this text again", notes)[1]
    assert generate("--drafter", "none", "--seed", seed)[0] == drawn
    assert generate("--drafter", "draft", "--draft-tokens", "2", "--seed", seed)[0] == drawn
    with SpeculativeDecoder.from_bundle(tiny_bundle, drafter="none") as decoder:
        sampling = SamplingParams(temperature=0.8, top_p=0.95, seed=int(seed))
        expected = decoder.generate(PROMPT, max_tokens=20, sampling=sampling)
    assert drawn == list(expected.token_ids)
    assert generate("--seed", str(int(seed) + 1))[0] != drawn


@pytest.mark.parametrize("rule", ["rejection", "block"])
def test_other_rules_and_several_answers(tiny_bundle: Path, rule: str) -> None:
    done = specplug(
        "generate", tiny_bundle, PROMPT, *SAMPLED, "--acceptance", rule, "--drafter", "draft",
        "--seed", "1", "-n", "3", "--json",
    )  # fmt: skip
    answers = json.loads(done.stdout)
    assert answers["seed"] == 1
    assert len({tuple(answer["token_ids"]) for answer in answers["samples"]}) == 3


def test_stop_logprobs_and_echo(tiny_bundle: Path) -> None:
    plain = specplug("generate", tiny_bundle, PROMPT, "--raw", "--max-tokens", "30", "--json")
    whole = json.loads(plain.stdout)
    stop = whole["text"][5:8]
    done = specplug(
        "generate", tiny_bundle, PROMPT, "--raw", "--max-tokens", "30", "--json", "--stop", stop,
        "--logprobs", "2", "--echo",
    )  # fmt: skip
    answer = json.loads(done.stdout)
    assert answer["finish_reason"] == "stop"
    assert answer["text"] == PROMPT + whole["text"][: whole["text"].index(stop)]
    assert answer["logprobs"][0] is None  # nothing comes before the first token
    for entry in answer["logprobs"][len(PROMPT) :]:
        assert entry["logprob"] == entry["top"][0]["logprob"]
        assert len(entry["top"]) == 2
    of_prompt = [bytes(entry["bytes"]) for entry in answer["logprobs"][1 : len(PROMPT)]]
    assert b"".join(of_prompt) == PROMPT.encode()[1:]
    assert [entry["id"] for entry in answer["logprobs"][1:]] == answer["token_ids"][1:]
    shown = specplug("generate", tiny_bundle, PROMPT, "--max-tokens", "5", "--logprobs", "1")
    assert len(re.findall(r"^ *-\d+\.\d{4} '", shown.stdout, re.M)) == 5


def test_structured_output(tiny_bundle: Path, tmp_path: Path) -> None:
    done = specplug(
        "generate", tiny_bundle, PROMPT, "--regex", "[ab]{3}-[0-9]{2}", "--drafter", "draft"
    )
    assert re.fullmatch("[ab]{3}-[0-9]{2}\n", done.stdout), done.stderr
    schema = tmp_path / "schema.json"
    schema.write_text('{"enum": ["one", "two"]}')
    made = specplug("generate", tiny_bundle, PROMPT, "--json-schema", schema, *SAMPLED)
    assert made.stdout in ('"one"\n', '"two"\n')


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["generate", "{bundle}", "hi", "--drafter", "magic"], 1, "drafter 'magic' is none of"),
        (["generate", "{bundle}", "hi", "--draft-tokens", "-1"], 1, "draft_tokens -1"),
        (["generate", "{bundle}", "hi", "--max-tokens", "0"], 2, "--max-tokens"),
        (["generate", "{bundle}", ""], 0, ""),  # through the chat template it is not empty
        (["generate", "{bundle}", "", "--raw"], 1, "the prompt is empty"),
        (["generate", "{bundle}", "x" * 2000], 1, "context ends at 1198: shorten the prompt"),
        (["generate", "{missing}", "hi"], 1, "is not a bundle"),
        (["generate", "{bundle}", "hi", "--temperature", "-1"], 1, "temperature -1.0: it must be"),
        (["generate", "{missing}", "hi", "--top-p", "0"], 1, "top_p 0.0: it must be in (0, 1]"),
        (["generate", "{bundle}", "hi", "--top-k", "-1"], 1, "top_k -1: it must be >= 0"),
        (["generate", "{bundle}", "hi", "--min-p", "1.5"], 1, "min_p 1.5: it must be in [0, 1]"),
        (["generate", "{bundle}", "hi", "--seed", "-1"], 1, "seed -1: it must be in [0, 2**64)"),
        (["generate", "{bundle}", "hi", "--acceptance", "hope"], 2, "'hope' is not one of"),
        (["generate", "{bundle}", "hi", "-n", "2"], 1, "greedy answers are all the same"),
        (["generate", "{bundle}", "hi", "-n", "0"], 2, "-n"),
        (["generate", "{bundle}", "hi", "--logprobs", "-1"], 1, "logprobs -1: it must be in [0"),
        (["generate", "{bundle}", "hi", "--stop", ""], 1, "a stop string has at least one"),
        (["generate", "{bundle}", "hi", "--json-schema", "x"], 1, "x: neither JSON nor a file"),
        (["generate", "{bundle}", "hi", "--json-schema", '{{"type": 3}}'], 1, "json_schema"),
        (
            [
                "generate",
                "{bundle}",
                "hi",
                "--json-schema",
                '{{"allOf": [{{"type": "null"}}, {{"type": "string"}}]}}',
            ],
            1,
            "json_schema",
        ),
        (["generate", "{bundle}", "hi", "--regex", "(a"], 1, "regex"),
        (["generate", "{bundle}", "hi", "--regex", "a", "--json-schema", "{{}}"], 1, "exclude"),
        (["chat", "{missing}", "--temperature", "-1"], 1, "temperature -1.0: it must be"),
        (["export", "-o", "{missing}"], 1, "give either SOURCE or --from-onnx DIR"),
        (["export", "-o", "{missing}", "--from-onnx", "x", "--precision", "int4"], 1, "as it is"),
        (["inspect", "{missing}"], 1, "is not a bundle"),
        (["export", "{missing}", "-o", "{missing}"], 1, "does not exist: give a .gguf file"),
        (["export", "{missing}", "-o", "{missing}/deep/x"], 1, "is not a folder: make it first"),
        (["export", "{bundle}", "-o", "x", "--precision", "int3"], 2, "int3"),
        (["export", "{bundle}"], 1, "is a bundle already: give --triton DIR"),
        (["export", "{missing}"], 1, "--output BUNDLE"),
        (["pull", "gpt-9"], 1, "no model named 'gpt-9'"),
        (["pull"], 2, "Missing argument"),
    ],
)
def test_wrong_arguments(
    tiny_bundle: Path, tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    names = {"bundle": tiny_bundle, "missing": tmp_path / "missing"}
    done = specplug(*(argument.format(**names) for argument in arguments))
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_chat_keeps_the_conversation(tiny_bundle: Path) -> None:
    done = specplug(
        "chat", tiny_bundle, "--max-tokens", "8", text="hello\n\n/reset\nhello\nagain\n/exit\n"
    )
    assert done.returncode == 0, done.stderr
    with SpeculativeDecoder.from_bundle(tiny_bundle, drafter="none") as decoder:
        first = decoder.generate("hello", max_tokens=8).text
        talk = [
            {"role": "user", "content": "hello"},
            {"role": "assistant", "content": first},
            {"role": "user", "content": "again"},
        ]
        second = decoder.generate(talk, max_tokens=8).text
    assert done.stdout == f"{first}\n{first}\n{second}\n"


def test_chat_samples(tiny_bundle: Path) -> None:
    done = specplug("chat", tiny_bundle, *SAMPLED, "--seed", "7", text="hello\n")
    with SpeculativeDecoder.from_bundle(tiny_bundle, drafter="none") as decoder:
        sampling = SamplingParams(temperature=0.8, top_p=0.95, seed=7)
        expected = decoder.generate("hello", max_tokens=20, sampling=sampling)
    assert done.stdout == expected.text + "\n"


def test_accepted_drafts_are_coloured_in_a_terminal(tiny_bundle: Path) -> None:
    main, other = pty.openpty()
    command = [sys.executable, "-m", "specplug", "generate", str(tiny_bundle), "aaaa"]
    command += ["--drafter", "draft", "--draft-tokens", "4", "--max-tokens", "20"]
    environment = {k: v for k, v in os.environ.items() if k != "NO_COLOR"} | {"TERM": "xterm"}
    done = subprocess.run(command, stdout=other, stderr=subprocess.PIPE, env=environment, text=True)
    os.close(other)
    shown = os.read(main, 1 << 16).decode(errors="replace")
    os.close(main)
    assert done.returncode == 0, done.stderr
    assert "\x1b[32m" in shown


def test_interrupt_ends_with_130(tiny_bundle: Path) -> None:
    script = (
        "import sys, signal, specplug.cli, specplug.decoder as d\n"
        "def stop(*a, **k): raise KeyboardInterrupt\n"
        "d.SpeculativeDecoder.stream = stop\n"
        "sys.argv = ['specplug', 'generate', sys.argv[1], 'hi']\n"
        "specplug.cli.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tiny_bundle)], capture_output=True, text=True
    )
    assert done.returncode == 130
    assert "Traceback" not in done.stderr


def test_inspect_knows_every_cache_and_draft(tiny_bundles: dict[str, Path]) -> None:
    from specplug.bundle import Bundle
    from specplug.cli.inspect import summary_rows

    manifest = Bundle.open(tiny_bundles["fp32"]).manifest
    entries = []
    for dtype in ("float32", "float16", "bfloat16"):
        cache = manifest.target.cache.model_copy(update={"dtype": dtype, "head_size": 1024})
        rows = summary_rows(manifest.target.model_copy(update={"cache": cache}))
        entries.append(int(rows["cache"].split()[0]))
    assert entries[0] == 2 * entries[1] == 2 * entries[2] > 0
    assert "exact (largest" in summary_rows(manifest.target)["token trees"]
    assert manifest.draft is not None
    assert "2 of the target's layers (0-1) and its cache" in summary_rows(manifest.draft)["model"]
    assert "not exact" in summary_rows(manifest.draft)["token trees"]
