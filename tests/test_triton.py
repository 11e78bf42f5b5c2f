"""The Triton model repository: its configuration by Triton's own schema, its model.py in a double
of the Python backend.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from google.protobuf import json_format, text_format

from specplug import (
    Bundle,
    BundleError,
    EngineError,
    ExportError,
    SamplingParams,
    SpeculativeDecoder,
)
from specplug.cli.export import export
from specplug.integrations.triton import repository, write_repository
from specplug.integrations.triton.asking import read_request
from specplug.library_errors import LibraryError
from tests_support import triton_double as double
from tests_support.command import specplug

PROMPT = "one two three one two three one"
Serve = Callable[..., Any]


def triton_schema() -> ModuleType:
    """Of the client's package, without the parts of it that need grpc."""
    (package,) = importlib.util.find_spec("tritonclient").submodule_search_locations
    return _module(Path(package) / "grpc" / "model_config_pb2.py", "model_config_pb2")


def _module(file: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCHEMA = triton_schema()


def configuration(folder: Path) -> Any:
    return text_format.Parse((folder / "config.pbtxt").read_text(), SCHEMA.ModelConfig())


@pytest.fixture(scope="module")
def written(tiny_bundles: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's folder."""
    return write_repository(tiny_bundles["fp32"], tmp_path_factory.mktemp("triton") / "models")


@pytest.fixture
def serve(written: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Loads the model as Triton does."""
    models = []

    def load(*, metrics: bool = True, folder: Path = written, **parameters: str) -> Any:
        double.install(monkeypatch, metrics=metrics)
        config = json_format.MessageToDict(configuration(folder), preserving_proto_field_name=True)
        for key, value in {"draft_tokens": "4", **parameters}.items():
            config["parameters"][key] = {"string_value": value}
        model = _module(folder / "1" / "model.py", "model").TritonPythonModel()
        model.initialize(
            {
                "model_config": json.dumps(config),
                "model_repository": str(folder),
                "model_version": "1",
                "model_name": folder.name,
                "model_instance_kind": "CPU",
                "model_instance_device_id": "0",
            }
        )
        models.append(model)
        return model

    yield load
    for model in models:
        model.finalize()


def ask(
    model: Any, inputs: dict[str, Any] | str = PROMPT, /, *requested: str, **parameters: Any
) -> Any:
    """Run a request as Triton does; gives its sender."""
    inputs = {"text_input": inputs} if isinstance(inputs, str) else inputs
    request = double.InferenceRequest(inputs, {"chat": False, **parameters}, requested)
    assert model.execute([request]) is None
    request.free()
    return request.sender


def plain(bundle: Path, prompt: Any = PROMPT, *, chat: bool = False, **options: Any) -> Any:
    with SpeculativeDecoder.from_bundle(bundle, drafter="none") as decoder:
        return decoder.generate(prompt, chat=chat, **options)


# --- the repository -------------------------------------------------------------------------------


def test_the_configuration_is_one_of_triton(written: Path) -> None:
    config = configuration(written)
    assert config.name == written.name == "fp32"
    assert (config.backend, config.max_batch_size) == ("python", 0)
    assert config.model_transaction_policy.decoupled
    inputs = {one.name: SCHEMA.DataType.Name(one.data_type) for one in config.input}
    assert inputs == {name: kind for name, (kind, _) in repository.INPUTS.items()}
    assert all(one.optional for one in config.input)
    assert {one.name: [*one.dims] for one in config.output} == {
        "text_output": [1],
        "token_ids": [-1],
        "finish_reason": [1],
        "statistics": [1],
    }
    assert config.parameters["max_batch"].string_value == "8"


def test_the_repository_has_its_own_copy_of_the_bundle(written: Path, tiny_bundle: Path) -> None:
    names = sorted(str(file.relative_to(written)) for file in written.rglob("*") if file.is_file())
    bundle = [
        f"1/bundle/{f.relative_to(tiny_bundle)}" for f in tiny_bundle.rglob("*") if f.is_file()
    ]
    assert names == sorted(["1/model.py", "config.pbtxt", *bundle])
    assert all(file.stat().st_nlink == 1 for file in written.rglob("*") if file.is_file())
    assert Bundle.open(written / "1" / "bundle").manifest == Bundle.open(tiny_bundle).manifest


def test_nothing_is_left_of_what_fails(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = tmp_path / "models"
    damaged = shutil.copytree(tiny_bundle, tmp_path / "damaged.bundle")
    (damaged / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError):
        write_repository(damaged, models)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises((ExportError, shutil.Error)):
        write_repository(tiny_bundle, models)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged.bundle"]


def test_a_model_is_replaced_on_request_and_nothing_else_is(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    models = tmp_path / "models"
    folder = write_repository(tiny_bundle, models)
    with pytest.raises(ExportError, match="exists"):
        write_repository(tiny_bundle, models)
    (folder / "1" / "old").touch()
    write_repository(tiny_bundle, models, force=True)
    assert not (folder / "1" / "old").exists()
    (folder / "config.pbtxt").unlink()
    with pytest.raises(ExportError, match=r"without config\.pbtxt: it is not replaced"):
        write_repository(tiny_bundle, models, force=True)
    with pytest.raises(ExportError, match="make it first"):
        write_repository(tiny_bundle, tmp_path / "a" / "b")
    odd = shutil.copytree(tiny_bundle, tmp_path / "a model.bundle")
    with pytest.raises(ExportError, match="'a model' cannot be a Triton model's name"):
        write_repository(odd, models)


def test_the_command_line(tiny_source: Path, tmp_path: Path) -> None:
    bundle, models = tmp_path / "made.bundle", tmp_path / "models"
    options = ("--precision", "fp32", "--triton", models)
    done = specplug("export", tiny_source, "-o", bundle, *options)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{bundle}\n{models / 'made'}\n"
    done = specplug("export", bundle, "--triton", models, "--force")
    assert (done.returncode, done.stdout) == (0, f"{models / 'made'}\n")


def test_wrong_command_lines(tiny_source: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    (models / "b").mkdir(parents=True)
    new = tmp_path / "b.bundle"
    for options, message in (
        ({"source": tiny_bundle}, "is a bundle already: give --triton DIR"),
        ({"source": tiny_source, "triton": models}, "--output BUNDLE"),
        ({"source": tiny_source, "output": new, "triton": models, "plan": True}, "leave --triton"),
        ({"source": tiny_source, "output": new, "triton": models}, "models/b exists"),
    ):
        with pytest.raises((ValueError, ExportError), match=message):
            export(**options)
    assert not new.exists()


# --- what a request says --------------------------------------------------------------------------


def test_parameters_may_be_text_and_come_before_those_of_the_input() -> None:
    asked = read_request(
        {"text_input": "x", "sampling_parameters": '{"temperature": 0.5, "top_k": 3, "seed": 1}'},
        {
            "temperature": "0.7",
            "max_tokens": "12",
            "stop": '["a", "b"]',
            "stream": "true",
            "logit_bias": '{"5": 1}',
            "banned_tokens": "[1, 2]",
            "json_schema": '{"type": "string"}',
            "triton_enable_empty_final_response": True,
        },
    )
    assert asked.stream
    assert asked.options == {
        "max_tokens": 12,
        "stop": ["a", "b"],
        "sampling": SamplingParams(
            temperature=0.7,
            top_k=3,
            seed=1,
            logit_bias={5: 1.0},
            banned_tokens=[1, 2],
            json_schema='{"type": "string"}',
        ),
    }


@pytest.mark.parametrize(
    ("inputs", "parameters", "message"),
    [
        ({}, {}, "one of text_input, messages, input_ids is needed, and none is given"),
        ({"text_input": "x", "input_ids": [1]}, {}, "text_input and input_ids is given"),
        ({"messages": "{"}, {}, "messages: not JSON"),
        ({"messages": '"x"'}, {}, "need a JSON list of objects"),
        ({"text_input": "x", "sampling_parameters": "[]"}, {}, "need a JSON object"),
        ({"text_input": "x"}, {"temprature": 1}, "'temprature' is not known: have max_tokens"),
        ({"text_input": "x"}, {"max_tokens": 1.5}, "max_tokens 1.5: need a whole number"),
        ({"text_input": "x"}, {"max_tokens": True}, "need a whole number"),
        ({"text_input": "x"}, {"seed": "one"}, "seed 'one': need a whole number"),
        ({"text_input": "x"}, {"seed": float("inf")}, "need a whole number"),
        ({"text_input": "x"}, {"temperature": "hot"}, "temperature 'hot': need a number"),
        ({"text_input": "x"}, {"temperature": -1}, "temperature -1.0: it must be >= 0"),
        ({"text_input": "x"}, {"stream": 1}, "stream 1: need true or false"),
        ({"text_input": "x"}, {"stop": 7}, "stop 7: need text"),
        ({"text_input": "x"}, {"json_schema": 7}, "need a JSON schema"),
        ({"text_input": "x"}, {"logit_bias": "[]"}, "need an object"),
        ({"text_input": "x"}, {"banned_tokens": "{}"}, "need token ids, such as 1,2,3"),
    ],
)
def test_wrong_requests_are_told_what_is_wrong(inputs: Any, parameters: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        read_request(inputs, parameters)


# --- answers --------------------------------------------------------------------------------------


def test_an_answer_is_the_decoders(serve: Serve, tiny_bundle: Path) -> None:
    model = serve()
    assert model.is_ready()
    sampling = SamplingParams(banned_tokens=[256])  # its end
    expected = plain(tiny_bundle, max_tokens=60, sampling=sampling)
    whole = ask(model, max_tokens=60, banned_tokens="[256]").wait()
    assert whole.text == expected.text
    assert whole.token_ids == [*expected.token_ids]
    assert whole.outputs("finish_reason") == [expected.finish_reason]

    streamed = ask(
        model, {"text_input": PROMPT, "stream": True}, max_tokens=60, banned_tokens="[256]"
    ).wait()
    assert len(streamed.responses) > 2
    assert streamed.text == expected.text
    assert streamed.token_ids == [*expected.token_ids]
    assert streamed.outputs("finish_reason")[:-1] == [""] * (len(streamed.responses) - 1)
    *before, last = streamed.outputs("statistics")
    assert not any(before)
    statistics = json.loads(last)
    assert statistics["completion_tokens"] == len(expected.token_ids)
    assert statistics["speculative_decoding"]["num_draft_tokens"] > 0  # the same was said before


def test_prompts_of_every_kind(serve: Serve, tiny_bundle: Path) -> None:
    model = serve()
    messages = [{"role": "user", "content": "hello"}]
    chat = plain(tiny_bundle, messages, max_tokens=9)
    ids = plain(tiny_bundle, [5, 6, 7], max_tokens=9)
    assert ask(model, {"messages": json.dumps(messages)}, max_tokens=9).wait().text == chat.text
    assert ask(model, "hello", chat=True, max_tokens=9).wait().text == chat.text
    found = ask(model, {"input_ids": [5, 6, 7]}, max_tokens=9).wait()
    assert found.token_ids == [*ids.token_ids]


def test_sampling_and_stop_strings(serve: Serve, tiny_bundle: Path) -> None:
    model = serve()
    sampling = SamplingParams(temperature=0.8, top_p=0.9, seed=5)
    expected = plain(tiny_bundle, max_tokens=30, sampling=sampling)
    options = {"max_tokens": 30, "temperature": 0.8, "top_p": 0.9, "seed": 5}
    assert ask(model, **options).wait().token_ids == [*expected.token_ids]
    stop = expected.text[7:9]
    stopped = ask(model, **options, stop=stop, stream=True).wait()
    assert stopped.text == expected.text[: expected.text.index(stop)]
    assert stopped.outputs("finish_reason")[-1] == "stop"


def test_only_outputs_that_are_asked_for(serve: Serve) -> None:
    found = ask(serve(), PROMPT, "text_output", max_tokens=4).wait()
    assert [tensor.name() for tensor in found.responses[0].output_tensors()] == ["text_output"]


def test_concurrent_requests_share_the_batch_and_get_their_own_answers(
    serve: Serve, tiny_bundle: Path
) -> None:
    prompts = [f"{word} and {word} and {word}" for word in ("ab", "cd", "efg", "h", "ij", "klm")]
    expected = [plain(tiny_bundle, prompt, max_tokens=24).text for prompt in prompts]
    model = serve(max_batch="3")
    most = 0
    stepping = model._decoder.step

    def step() -> Any:
        nonlocal most
        made = stepping()
        most = max(most, model._decoder.running)
        return made

    model._decoder.step = step
    senders: list[Any] = [None] * len(prompts)

    def send(which: int) -> None:
        senders[which] = ask(model, prompts[which], max_tokens=24, stream=bool(which % 2))

    threads = [threading.Thread(target=send, args=(which,)) for which in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [sender.wait().text for sender in senders] == expected
    assert most == 3
    assert not model._answers


# --- errors, cancellation, the end ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "parameters", "message"),
    [
        ("x" * 1300, {}, "shorten the prompt"),
        ("x", {"max_tokens": 0}, "max_tokens 0: need at least 1"),
        ("x", {"top_p": 2}, "top_p 2.0"),
        ("x", {"logit_bias": '{"99999": 1}'}, "token id 99999"),
        ({"text_input": [b"x", b"y"]}, {}, "text_input has 2 values"),
        ({"text_input": [b"\xff"]}, {}, "can't decode"),
        ("x", {"regex": "(a"}, "regex (a: unclosed group"),
    ],
)
def test_wrong_requests_get_an_error_and_hurt_nobody(
    serve: Serve, inputs: Any, parameters: Any, message: str
) -> None:
    model = serve()
    failure = ask(model, inputs, **parameters).wait().failure
    assert failure.code() == double.TritonError.INVALID_ARG
    assert message in failure.message()
    assert ask(model, max_tokens=3).wait().failure is None


def test_what_a_library_says_of_itself_stays_in_the_log(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = serve()
    inside = "panicked at /home/runner/work/parser.rs:3:1"
    for failure, code in (
        (LibraryError("regex (a", inside), double.TritonError.INVALID_ARG),
        (RuntimeError(inside), double.TritonError.INTERNAL),
        (EngineError(inside), double.TritonError.INTERNAL),
        (type("PanicException", (BaseException,), {"__module__": "pyo3_runtime"})(inside), 1),
    ):

        def fails(*arguments: Any, raised: BaseException = failure, **options: Any) -> None:
            raise raised

        with monkeypatch.context() as planted:
            planted.setattr(model._decoder, "encode", fails)
            refused = ask(model, max_tokens=3).wait().failure
        assert refused.code() == code
        assert "/home" not in refused.message()
        assert "panic" not in refused.message()
        assert ask(model, max_tokens=3).wait().failure is None
    assert any(inside in line for line in double.Logger.lines)


def test_a_cancelled_request_ends_without_an_answer(serve: Serve) -> None:
    model = serve(max_batch="1", draft_tokens="0")
    running = ask(model, stream=True, max_tokens=900, banned_tokens="[256]")
    waiting = ask(model, max_tokens=900, banned_tokens="[256]")
    assert running.first.wait(30)
    waiting.cancelled = running.cancelled = True
    assert waiting.wait().responses == []
    assert len(running.wait().token_ids) < 900
    assert ask(model, max_tokens=3).wait().failure is None


def test_a_client_that_is_gone_frees_its_place(serve: Serve) -> None:
    model = serve(max_batch="1", draft_tokens="0")
    gone = ask(model, stream=True, max_tokens=900, banned_tokens="[256]")
    assert gone.first.wait(30)
    gone.broken = True
    assert ask(model, max_tokens=3).wait().failure is None
    assert any("the client is gone" in line for line in double.Logger.lines)


def test_more_requests_than_may_wait_are_refused(serve: Serve) -> None:
    model = serve(max_batch="1", max_waiting="1", draft_tokens="0")
    senders = [ask(model, max_tokens=200, banned_tokens="[256]") for _ in range(8)]
    failures = [sender.wait().failure for sender in senders]
    refused = [failure for failure in failures if failure]
    assert refused
    assert len(refused) < 8
    assert {failure.code() for failure in refused} == {double.TritonError.UNAVAILABLE}


def test_unloading_tells_whoever_waits(serve: Serve) -> None:
    model = serve(max_batch="1", draft_tokens="0")
    senders = [ask(model, max_tokens=900, banned_tokens="[256]") for _ in range(2)]
    model.finalize()
    for sender in senders:
        assert sender.wait().failure.code() == double.TritonError.UNAVAILABLE
    assert not model.is_ready()
    late = ask(model, max_tokens=2).wait().failure
    assert late.code() == double.TritonError.UNAVAILABLE


def test_a_failing_decoder_ends_all_requests_and_readiness(serve: Serve) -> None:
    model = serve()

    def fail() -> Any:
        raise RuntimeError("as planned")

    model._decoder.step = fail
    failure = ask(model, max_tokens=3).wait().failure
    assert failure.code() == double.TritonError.INTERNAL
    assert failure.message() == "the model failed; the server's log tells why"
    assert any("as planned" in line for line in double.Logger.lines)
    model._thread.join(10)
    assert not model.is_ready()


def test_a_failure_of_one_answer_is_its_own(serve: Serve) -> None:
    model = serve()
    banned = json.dumps([token for token in range(260) if token != 3])
    dead_end = ask(model, max_tokens=9, banned_tokens=banned, no_repeat_ngram=1)
    well = ask(model, max_tokens=9)
    assert "no token is left" in dead_end.wait().failure.message()
    failure = well.wait().failure
    assert failure is None, failure.message()


def test_wrong_settings_are_told_when_the_model_is_loaded(serve: Serve, tmp_path: Path) -> None:
    for parameters, message in (
        ({"drafter": "magic"}, "'magic'"),
        ({"max_batch": "many"}, "many"),
        ({"bundle": str(tmp_path)}, str(tmp_path)),
    ):
        with pytest.raises(double.TritonModelException, match=f"fp32: .*{message}"):
            serve(**parameters)


# --- metrics --------------------------------------------------------------------------------------


def test_metrics_count_what_the_statistics_say(serve: Serve) -> None:
    model = serve()
    told = [ask(model, f"{PROMPT} {n}", max_tokens=30).wait() for n in range(3)]
    statistics = [json.loads(one.outputs("statistics")[0]) for one in told]
    families = double.MetricFamily.made

    def total(name: str) -> float:
        return sum(metric.count for metric in families[f"specplug:{name}"].metrics.values())

    drafting = [one["speculative_decoding"] for one in statistics]
    assert total("prompt_tokens_total") == sum(one["prompt_tokens"] for one in statistics)
    assert total("generation_tokens_total") == sum(one["completion_tokens"] for one in statistics)
    drafted = sum(one["num_draft_tokens"] for one in drafting)
    assert total("spec_decode_num_draft_tokens_total") == drafted > 0
    accepted = sum(one["num_accepted_draft_tokens"] for one in drafting)
    assert total("spec_decode_num_accepted_tokens_total") == accepted > 0
    assert total("spec_decode_num_accepted_tokens_per_pos_total") == accepted
    assert total("spec_decode_num_drafts_total") == sum(
        sum(map(bool, one["per_step_drafted"])) for one in drafting
    )
    for labels in families["specplug:prompt_tokens_total"].metrics:
        assert labels == (("model", "fp32"), ("version", "1"))


def test_a_server_without_metrics_answers_all_the_same(serve: Serve) -> None:
    assert ask(serve(metrics=False), max_tokens=3).wait().failure is None
    assert any("no metrics" in line for line in double.Logger.lines)
