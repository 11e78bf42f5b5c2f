"""Text between a person and the command line, in any encoding, and interrupts at any time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from specplug import SpeculativeDecoder
from tests_support.command import specplug

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
TERMINALS = {
    "utf-8": {"PYTHONIOENCODING": "utf-8"},
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "cp1252": {"PYTHONIOENCODING": "cp1252"},
    "locale C": ASCII,
}
PROMPT = "größer 素早い 🦊"
INVALID = b"fox \xff\xfe"


def run(
    *arguments: str | bytes | Path, given: bytes = b"", **environment: str
) -> subprocess.CompletedProcess[bytes]:
    """The command in a process of its own, with bytes for its arguments and streams."""
    known = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG", "PYTHON"))}
    return subprocess.run(
        [sys.executable, "-m", "specplug", *arguments],
        env=known | {"NO_COLOR": "1", "COLUMNS": "200"} | environment,
        input=given,
        capture_output=True,
    )


@pytest.fixture(scope="module")
def answer(tiny_bundles: dict[str, Path]) -> str:
    """What the model says, from Python; it has characters that ASCII and cp1252 lack."""
    with SpeculativeDecoder.from_bundle(tiny_bundles["fp32"], drafter="none") as decoder:
        text = decoder.generate(PROMPT, max_tokens=12).text
    assert not text.isascii()
    with pytest.raises(UnicodeEncodeError):
        text.encode("cp1252")
    return text


@pytest.mark.parametrize("terminal", TERMINALS)
def test_any_terminal_gets_the_answer(terminal: str, tiny_bundle: Path, answer: str) -> None:
    """The prompt is the user's UTF-8 everywhere; what a terminal cannot show is a question mark."""
    command = ("generate", tiny_bundle, PROMPT.encode(), "--max-tokens", "12")
    shown = run(*command, **TERMINALS[terminal])
    assert shown.returncode == 0, shown.stderr
    encoding = {"locale C": "ascii"}.get(terminal, terminal)
    assert shown.stdout == f"{answer}\n".encode(encoding, errors="replace")
    if terminal != "utf-8":
        described = run(*command, "--json", **TERMINALS[terminal])
        assert json.loads(described.stdout)["text"] == answer, "JSON can say all of it in ASCII"


def test_standard_input_and_files_are_utf_8_in_every_locale(
    tiny_bundle: Path, answer: str, tmp_path: Path
) -> None:
    file = tmp_path / "prediction"
    file.write_bytes(PROMPT.encode("utf-8-sig"))  # as editors of another system write it
    options = ("--max-tokens", "12", "--json", "--prediction", f"@{file}")
    done = run("generate", tiny_bundle, "-", *options, given=PROMPT.encode(), **ASCII)
    assert json.loads(done.stdout)["text"] == answer, done.stderr


@pytest.mark.parametrize(
    ("arguments", "given", "what"),
    [
        (["generate", "{bundle}", INVALID], b"", "prompt"),
        (["generate", "{bundle}", "-"], INVALID, "the prompt on standard input"),
        (["generate", "{bundle}", "x", "--stop", INVALID], b"", "stop"),
        (["generate", "{bundle}", "x", "--prediction", "@{file}"], b"", "--prediction {file}"),
        (["generate", "{bundle}", "x", "--json-schema", "{file}"], b"", "--json-schema {file}"),
        (["serve", "{bundle}", "--api-key-file", "{file}"], b"", "--api-key-file {file}"),
        (["distill", "{bundle}", "--prompts", "{file}", "-o", "x"], b"", "{file}"),
        (["bench", "{bundle}", "--workload", "{file}"], b"", "{file}"),
    ],
)
def test_what_is_not_utf_8_is_one_line(
    arguments: list[str | bytes], given: bytes, what: str, tiny_bundle: Path, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_bytes(INVALID)
    file.chmod(0o600)  # of keys it would be said otherwise

    def filled(text: str) -> str:
        return text.format(bundle=tiny_bundle, file=file)

    command = [filled(each) if isinstance(each, str) else each for each in arguments]
    done = run(*command, given=given)
    assert done.returncode == 1
    assert done.stderr.decode() == (
        f"error: {filled(what)} is not UTF-8: byte 4 is 0xff: convert it, as iconv does\n"
    )
    assert not done.stdout


def test_a_conversation_goes_on_after_such_a_line(tiny_bundle: Path) -> None:
    lines = b"one\n" + INVALID + b"\ntwo\n"
    done = run("chat", tiny_bundle, "--max-tokens", "4", given=lines)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(b"tokens in") == 2
    assert b"the line is not UTF-8: byte 4 is 0xff" in done.stderr


@pytest.mark.parametrize("stream", ["full", "closed", "gone"])
def test_output_that_cannot_be_written_is_no_traceback(stream: str, tiny_bundle: Path) -> None:
    redirected = {"full": "> /dev/full", "closed": ">&-", "gone": "| head -c 1"}[stream]
    command = f"{sys.executable} -m specplug generate {tiny_bundle} x --max-tokens 12 {redirected}"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr
    if stream == "full":
        assert done.stderr == "error: No space left on device\n"


IMPORTED = (
    "specplug.cli",
    "numpy",
    "pydantic",
    "rich.progress",
    "specplug.cli.verify",
    "tokenizers",
)
"""Some of what the command imports before it looks at its arguments."""

INTERRUPTED = """
import os, signal, sys
from importlib.abc import MetaPathFinder

class Finder(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == sys.argv[1]:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder())
# Shells start background jobs, the tests perhaps, with SIGINT ignored; a user's is not.
signal.signal(signal.SIGINT, signal.default_int_handler)
from specplug.entry import main
main()
"""


@pytest.mark.parametrize("module", IMPORTED)
def test_an_interrupt_while_the_command_is_imported(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, module], capture_output=True, text=True
    )
    assert done.returncode == 128 + signal.SIGINT
    assert done.stderr == "interrupted\n"
    assert not done.stdout


def test_jobs_that_ignore_interrupts_go_on_ignoring_them() -> None:
    code = INTERRUPTED.replace("signal.default_int_handler", "signal.SIG_IGN")
    done = subprocess.run([sys.executable, "-c", code, "numpy"], capture_output=True, text=True)
    assert done.returncode == 2, "numpy is no command"
    assert "interrupted" not in done.stderr


@pytest.mark.parametrize(
    ("options", "idle"),
    [
        (["--top-p", "0.9"], "--top-p does nothing here: at temperature 0"),
        (["--seed", "3"], "--seed does nothing here: at temperature 0"),
        (["--acceptance", "rejection"], "--acceptance does nothing here: at temperature 0"),
        (["--prediction", "x", "--drafter", "ngram"], "--prediction does nothing here"),
        (["--allow-inexact-trees", "--draft-tokens", "0"], "nothing is drafted"),
    ],
)
def test_options_that_do_nothing_are_told(options: list[str], idle: str, tiny_bundle: Path) -> None:
    told = specplug("generate", tiny_bundle, "x", "--max-tokens", "2", *options)
    assert told.returncode == 0, told.stderr
    assert idle in told.stderr
    alone = specplug("generate", tiny_bundle, "x", "--max-tokens", "2")
    assert "does nothing" not in alone.stderr
    assert told.stdout == alone.stdout


def test_drafting_nothing_and_something_is_a_contradiction(tiny_bundle: Path) -> None:
    done = specplug("generate", tiny_bundle, "x", "--drafter", "none", "--draft-tokens", "4")
    assert done.returncode == 1
    assert "--draft-tokens 4: with drafter none nothing is drafted" in done.stderr


UNIMPORTED = """
import atexit, sys

LONG = {"torch", "transformers", "mobius", "onnxruntime"}
atexit.register(lambda: LONG & {*sys.modules} and print("imported", LONG & {*sys.modules}))
from specplug.entry import main
main()
"""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("export nowhere.gguf -o out", "nowhere.gguf does not exist"),
        ("export {bundle} -o out", "is a bundle, which was exported already"),
        ("export {source} -o {bundle}", "exists: choose another name"),
        ("export {source} -o nowhere/out", "nowhere is not a folder"),
        ("export {source} -o /proc/out", "/proc cannot be written to"),
        ("export {source} -o out --keep-fp32 (", "is no regular expression"),
        ("export {source} -o out --self-draft fast", "give a precision"),
        ("export {source} -o out --precision gguf", "a GGUF file"),
        ("export {source} -o out --draft nowhere", "nowhere does not exist"),
        ("export {source} -o out --quality nowhere", "--quality nowhere"),
        ("export --from-onnx nowhere -o out", "--from-onnx nowhere is no folder"),
        ("verify {bundle} --source nowhere", "nowhere does not exist"),
        ("distill nowhere --prompts {prompts} -o out", "nowhere does not exist"),
        ("distill {source} --prompts {prompts} -o {bundle}", "exists: choose another name"),
        ("distill {source} --prompts {prompts} -o out --layers x", "--layers x: need numbers"),
    ],
)
def test_wrong_arguments_end_before_long_imports(
    arguments: str, message: str, tiny_source: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    """What a user waits for is those imports: without them a command ends within a second."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "x"}')
    named = {"bundle": tiny_bundle, "source": tiny_source, "prompts": prompts}
    done = subprocess.run(
        [sys.executable, "-c", UNIMPORTED, *(word.format(**named) for word in arguments.split())],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not done.stdout
    assert [*tmp_path.iterdir()] == [prompts]


@pytest.mark.skipif(sys.platform == "win32", reason="a shell closes the streams")
@pytest.mark.parametrize(
    ("command", "closed"),
    [
        (("chat",), "<&-"),
        (("generate", "-"), "<&-"),
        (("generate", "hi"), ">&-"),
        (("chat",), "2>&-"),
    ],
)
def test_closed_streams(command: tuple[str, ...], closed: str, tiny_bundle: Path) -> None:
    """As cron and daemons leave them: what is read has ended, and what is written goes nowhere."""
    name, *rest = command
    words = [sys.executable, "-m", "specplug", name, str(tiny_bundle), *rest, "--max-tokens", "2"]
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}', "sh", *words], input=b"", capture_output=True
    )
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
