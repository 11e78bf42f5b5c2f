"""What Triton's Python backend runs: ``TritonPythonModel``, of the decoupled kind.

``execute`` only queues: a thread of the model's own steps the batch, in which requests join and
leave, and sends what each of them gets.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from specplug.batching import BatchDecoder
from specplug.context import Token
from specplug.generation import Generation
from specplug.generation_options import (
    DEFAULT_MAX_TOKENS,
    GenerationOptions,
    split_options,
)
from specplug.integrations.triton.asking import read_request
from specplug.integrations.triton.metrics import Metrics
from specplug.integrations.triton.repository import BUNDLE, INPUTS, OUTPUTS, read_settings
from specplug.library_errors import is_panic, public_text
from specplug.owned import closing_on_failure
from specplug.sampling import NothingLeftError
from specplug.types import ContextLimitError, MissingExtraError, SpecplugError


@dataclass(slots=True)
class _Answer:
    """What was asked for, what of it was made, and what of that was not yet sent."""

    sender: Any
    stream: bool
    wanted: Sequence[str]
    """Outputs; none: all."""
    unsent: list[Token] = field(default_factory=list)


class TritonPythonModel:
    """One bundle; see Triton's documentation of the Python backend for what calls these."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the bundle, measure its calls, and start the thread.

        Raises:
            TritonModelException: the configuration is wrong, or the bundle cannot be opened.
        """
        config = json.loads(args["model_config"])
        parameters = config.get("parameters", {})
        told = {key: one.get("string_value", "") for key, one in parameters.items()}
        folder = Path(args["model_repository"]) / args["model_version"]
        try:
            if not config.get("model_transaction_policy", {}).get("decoupled", False):
                raise ValueError("config.pbtxt: need model_transaction_policy { decoupled: true }")
            asked = read_settings(told)
            self._most_waiting = asked.pop("max_waiting")
            with closing_on_failure() as opened:
                self._decoder = opened(
                    BatchDecoder.from_bundle(folder / asked.pop(BUNDLE), **asked)
                )
                self._decoder.prepare()
                self._metrics = Metrics.of(pb_utils, args["model_name"], args["model_version"])
        except (SpecplugError, ValueError) as error:
            raise pb_utils.TritonModelException(f"{args['model_name']}: {error}") from error
        self._answers: dict[Generation, _Answer] = {}
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="specplug", daemon=True)
        self._thread.start()

    def execute(self, requests: Sequence[Any]) -> None:
        """Queue requests; their answers come from the thread."""
        for request in requests:
            sender = request.get_response_sender()
            try:
                asked = read_request(_inputs(request), json.loads(request.parameters() or "{}"))
                of_prompt, options = split_options(asked.options)
                most = options.get("max_tokens", DEFAULT_MAX_TOKENS)
                prompt = self._decoder.encode(asked.prompt, max_tokens=most, **of_prompt)
                wanted = list(request.requested_output_names())
                self._queue(prompt, options, _Answer(sender, asked.stream, wanted))
            except BaseException as error:  # whatever it is, it is this request's alone
                if not isinstance(error, Exception) and not is_panic(error):
                    raise
                _refuse(sender, error)

    def is_ready(self) -> bool:
        """Whether requests can be answered."""
        return self._thread.is_alive() and not self._closing

    def finalize(self) -> None:
        """Stop; requests that were not finished are told so."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()
        self._abandon(_UnavailableError("the model is being unloaded"))
        self._decoder.close()

    def _queue(self, prompt: Sequence[int], options: GenerationOptions, answer: _Answer) -> None:
        with self._changed:  # held, so that the thread finds the answer when it has tokens for it
            if not self.is_ready():
                raise _UnavailableError("the model does not take requests any more")
            if self._decoder.waiting >= self._most_waiting:
                raise _UnavailableError(f"{self._most_waiting} requests wait already: try later")
            generation = self._decoder.submit(prompt, **options)
            self._answers[generation] = answer
            self._changed.notify()

    # --- the thread ---------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while True:
                with self._changed:
                    while self._decoder.idle and not self._closing:
                        self._changed.wait()
                    if self._closing:
                        return
                    running = list(self._answers.items())
                for generation, answer in running:
                    if answer.sender.is_cancelled():
                        generation.cancel()
                made: dict[Generation, list[Token]] = {}
                for generation, tokens in self._decoder.step():
                    made.setdefault(generation, []).extend(tokens)
                for generation, tokens in made.items():
                    self._deliver(generation, tokens)
        except Exception as error:
            pb_utils.Logger.log_error(f"specplug: the decoder failed: {error}")
            with self._changed:
                self._closing = True
            self._abandon(error)

    def _deliver(self, generation: Generation, tokens: Sequence[Token]) -> None:
        ended = generation.finish_reason is not None
        with self._changed:
            answer = self._answers.pop(generation) if ended else self._answers[generation]
        answer.unsent += tokens
        if ended:
            self._metrics.count(generation)
        try:
            if generation.error is not None:
                _refuse(answer.sender, generation.error)
            elif generation.finish_reason == "cancelled":
                answer.sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
            elif ended:
                answer.sender.send(
                    _response(answer, generation),
                    flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL,
                )
            elif answer.stream and answer.unsent:
                answer.sender.send(_response(answer, generation))
        except Exception as error:  # nobody is there to be told
            pb_utils.Logger.log_warn(f"specplug: an answer could not be sent: {error}")
            generation.cancel()

    def _abandon(self, error: Exception) -> None:
        """Tell all that are left."""
        with self._changed:
            left = [answer.sender for answer in self._answers.values()]
            self._answers.clear()
        for sender in left:
            _refuse(sender, error)


class _UnavailableError(Exception):
    """Not now."""


def _inputs(request: Any) -> dict[str, Any]:
    """The inputs as plain values: the tensors are gone when ``execute`` returns."""
    found: dict[str, Any] = {}
    for name, (data_type, length) in INPUTS.items():
        tensor = pb_utils.get_input_tensor_by_name(request, name)
        if tensor is None:
            continue
        values = tensor.as_numpy().ravel().tolist()
        if data_type == "TYPE_STRING":
            values = [value.decode() for value in values]
        if length == 1 and len(values) != 1:
            raise ValueError(f"{name} has {len(values)} values: one prompt makes a request")
        found[name] = values[0] if length == 1 else values
    return found


def _response(answer: _Answer, generation: Generation) -> Any:
    """What was not sent, which is then; with the statistics if it is the end."""
    tokens, answer.unsent = answer.unsent, []
    told = ""
    if generation.finish_reason is not None:
        told = json.dumps(
            {
                "prompt_tokens": generation.stats.prompt_tokens,
                "completion_tokens": generation.stats.new_tokens,
                "cached_tokens": generation.cached_tokens,
                "speculative_decoding": generation.stats.as_dict(),
            }
        )
    values = {
        "text_output": "".join(token.text for token in tokens),
        "token_ids": [token.id for token in tokens],
        "finish_reason": generation.finish_reason or "",
        "statistics": told,
    }
    return pb_utils.InferenceResponse(
        output_tensors=[
            pb_utils.Tensor(name, _array(values[name]))
            for name in OUTPUTS
            if not answer.wanted or name in answer.wanted
        ]
    )


def _array(value: Any) -> np.ndarray[Any, Any]:
    if isinstance(value, str):
        return np.array([value.encode()], dtype=np.object_)
    return np.array(value, dtype=np.int64)


def _refuse(sender: Any, error: BaseException) -> None:
    """End a request with an error, in our words or a library's about the input; the log has all."""
    codes = pb_utils.TritonError
    if isinstance(error, _UnavailableError):
        code, message = codes.UNAVAILABLE, str(error)
    elif isinstance(error, MissingExtraError):
        code, message = codes.UNSUPPORTED, str(error)
    elif isinstance(error, ContextLimitError | NothingLeftError):  # also of one that was not raised
        code, message = codes.INVALID_ARG, str(error)
    elif isinstance(error, ValueError):
        code, message = codes.INVALID_ARG, public_text(error)
    else:
        pb_utils.Logger.log_error(f"specplug: a request failed: {type(error).__name__}: {error}")
        code, message = codes.INTERNAL, "the model failed; the server's log tells why"
    sender.send(
        pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code)),
        flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL,
    )
