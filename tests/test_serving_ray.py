"""The server as an application of Ray Serve: two replicas on a cluster that the tests start."""

from __future__ import annotations

import importlib.util
import itertools
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import openai
import pytest

import specplug
from specplug.serving.keys import hash_key
from tests_support.ray_cluster import Cluster

if importlib.util.find_spec("ray") is None:
    pytest.skip("no Ray: pip install 'specplug[ray]'", allow_module_level=True)

pytestmark = pytest.mark.slow

PREFIX = 64  # characters; of the tiny model's, each is a token
STOP = 256  # the tiny model's stop token; without it answers have the length that they may have
ENDLESS = {"logit_bias": {str(STOP): -100}}
SETTINGS = {"model_name": "tiny", "max_batch": 4, "cpus": 0.5, "prefix_characters": PREFIX}


@pytest.fixture(scope="module")
def cluster(tiny_bundles: dict[str, Path]) -> Iterator[Cluster]:
    made = Cluster(bundle=str(tiny_bundles["fp32"]), replicas=2, max_waiting=16, **SETTINGS)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def client(cluster: Cluster) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{cluster.address}/v1", api_key="k", max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def alone(tiny_bundles: dict[str, Path]) -> Iterator[Callable[..., str]]:
    """The text that a decoder of one's own gives."""
    with specplug.SpeculativeDecoder.from_bundle(tiny_bundles["fp32"]) as decoder:

        def text(prompt: Any, *, max_tokens: int, **sampled: Any) -> str:
            sampling = specplug.SamplingParams(**{"temperature": 1.0, **sampled})
            tokens = decoder.encode(prompt, chat=not isinstance(prompt, str))
            return decoder.generate(tokens, max_tokens=max_tokens, sampling=sampling).text

        yield text


def messages(text: str) -> Any:
    return [{"role": "user", "content": text}]


def metrics(cluster: Cluster) -> Counter[str]:
    """By name, added up over replicas and labels; 0: not there yet."""
    found: Counter[str] = Counter()
    with urlopen(f"{cluster.address}/metrics", timeout=10) as response:
        for line in response.read().decode().splitlines():
            if not line.startswith("#"):
                name, value = line.rsplit(" ", 1)
                name = name.partition("{")[0].removeprefix("specplug:")
                found[name] += float(value)  # type: ignore[assignment]
    return found


def wait_until(holds: Callable[[], bool], seconds: float = 40, every: float = 0.2) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(every)


def test_texts_are_those_of_a_decoder_alone(
    client: openai.OpenAI, alone: Callable[..., str]
) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    for seed, temperature in itertools.product(range(3), (0.0, 1.0)):
        options: Any = {"seed": seed, "temperature": temperature, "max_tokens": 24}
        expected = alone(messages("Hello"), **options)
        whole = client.chat.completions.create(model="tiny", messages=messages("Hello"), **options)
        assert whole.choices[0].message.content == expected
        stream = client.chat.completions.create(
            model="tiny", messages=messages("Hello"), stream=True, **options
        )
        parts = [chunk.choices[0].delta.content or "" for chunk in stream]
        assert "".join(parts) == expected
        continued = client.completions.create(model="tiny", prompt="Hello", **options)
        assert continued.choices[0].text == alone("Hello", **options)


def test_requests_without_a_seed_differ(client: openai.OpenAI) -> None:
    texts = {
        client.completions.create(model="tiny", prompt="Hello", max_tokens=24).choices[0].text
        for _ in range(4)
    }
    assert len(texts) > 1


def test_fields_mean_what_they_mean_without_ray(client: openai.OpenAI) -> None:
    def ask(**fields: Any) -> str:
        made = client.completions.create(
            model="tiny", prompt="Hello", max_tokens=24, extra_body=fields
        )
        return made.choices[0].text

    assert re.fullmatch("[ab]{3}", ask(regex="[ab]{3}"))
    assert ask(structured_outputs={"choice": ["Rhine"]}) == "Rhine"
    assert set(ask(allowed_token_ids=[64, 65], n_predict=6, max_tokens=None)) == {"a", "b"}
    assert len({ask(seed=-1) for _ in range(4)}) > 1
    chat = client.chat.completions.create(
        model="tiny",
        messages=[*messages("Hello"), {"role": "assistant", "content": "three"}],
        max_tokens=4,
        extra_body={"echo": True, "continue_final_message": True},
    )
    assert (chat.choices[0].message.content or "").startswith("three")
    with pytest.raises(openai.BadRequestError, match="did you mean 'min_tokens'") as wrong:
        ask(min_tokenz=3)
    assert wrong.value.param == "min_tokenz"
    with pytest.raises(openai.BadRequestError) as wrong:
        ask(mirostat=2)
    assert (wrong.value.param, wrong.value.code) == ("mirostat", "unsupported_parameter")


def test_ids_and_errors_pass_through(client: openai.OpenAI) -> None:
    raw = client.completions.with_raw_response.create(
        model="tiny", prompt="a", max_tokens=1, extra_headers={"X-Request-Id": "mine"}
    )
    assert raw.headers["x-request-id"] == "mine"
    with pytest.raises(openai.BadRequestError, match="max_tokens"):
        client.completions.create(model="tiny", prompt="a", max_tokens=0)
    with pytest.raises(openai.NotFoundError, match="no model 'large'"):
        client.completions.create(model="large", prompt="a")
    with pytest.raises(openai.APIStatusError, match="bytes") as refused:
        client.completions.create(model="tiny", prompt="a" * (1 << 20))
    assert refused.value.status_code == 413


def test_prompts_that_begin_alike_go_to_one_replica(
    cluster: Cluster, client: openai.OpenAI
) -> None:
    def replica(prompt: str) -> str:
        raw = client.chat.completions.with_raw_response.create(
            model="tiny", messages=messages(prompt), max_tokens=2
        )
        return raw.headers["x-specplug-replica"]

    hits = metrics(cluster)["prefix_cache_hits_total"]
    assert len({replica("x" * PREFIX + str(number)) for number in range(8)}) == 1
    assert len({replica(str(number) * PREFIX) for number in range(10, 26)}) == 2
    wait_until(lambda: metrics(cluster)["prefix_cache_hits_total"] > hits)


def test_one_prefix_spreads_when_its_replica_has_much_to_do(client: openai.OpenAI) -> None:
    def replica(number: int) -> str:
        raw = client.completions.with_raw_response.create(
            model="tiny", prompt="y" * PREFIX + str(number), max_tokens=200, extra_body=ENDLESS
        )
        return raw.headers["x-specplug-replica"]

    with ThreadPoolExecutor(12) as pool:
        assert len(set(pool.map(replica, range(12)))) == 2


def test_too_many_requests_are_told_to_come_later(client: openai.OpenAI) -> None:
    def ask(number: int) -> openai.RateLimitError | None:
        try:
            client.completions.create(
                model="tiny", prompt=f"a{number}", max_tokens=1000, extra_body=ENDLESS
            )
        except openai.RateLimitError as error:
            return error
        return None

    with ThreadPoolExecutor(64) as pool:
        refused = [error for error in pool.map(ask, range(64)) if error is not None]
    assert 0 < len(refused) < 64
    assert all(int(error.response.headers["retry-after"]) >= 1 for error in refused)
    assert "ask again later" in refused[0].message


def test_a_client_that_goes_frees_its_place(cluster: Cluster, client: openai.OpenAI) -> None:
    before = metrics(cluster)["answers_total"]
    stream = client.completions.create(
        model="tiny",
        prompt="a",
        max_tokens=1000,
        stream=True,
        extra_body=ENDLESS,
    )
    next(iter(stream))
    stream.close()
    wait_until(lambda: metrics(cluster)["answers_total"] > before)
    wait_until(lambda: metrics(cluster)["num_requests_running"] == 0)


@dataclass
class Outcome:
    number: int
    streamed: bool
    text: str = ""
    error: openai.APIError | None = None


def ask(client: openai.OpenAI, outcome: Outcome, max_tokens: int) -> Outcome:
    options: Any = {
        "model": "tiny",
        "prompt": f"question {outcome.number}",
        "seed": outcome.number,
        "max_tokens": max_tokens,
        "extra_body": ENDLESS,
    }
    try:
        if outcome.streamed:
            for chunk in client.completions.create(stream=True, **options):
                outcome.text += chunk.choices[0].text
        else:
            outcome.text = client.completions.create(**options).choices[0].text
    except openai.APIError as error:
        outcome.error = error
    return outcome


def expected(alone: Callable[..., str], outcome: Outcome, max_tokens: int) -> str:
    return alone(
        f"question {outcome.number}",
        seed=outcome.number,
        max_tokens=max_tokens,
        logit_bias={STOP: -100.0},
    )


def hit_by_a_kill(cluster: Cluster, client: openai.OpenAI, alone: Callable[..., str]) -> int:
    """Kill a replica under load; the number of requests that it had."""
    # A chunk of a stream costs this process and Ray's more than it costs a replica: whole answers,
    # and long ones, see to it that a replica always has something to lose.
    tokens = {False: 500, True: 100}
    before = metrics(cluster)
    victim, _ = cluster.replicas
    whole = [Outcome(number, streamed=False) for number in range(30)]
    streamed = [Outcome(number, streamed=True) for number in range(30, 40)]
    answered = itertools.count(1)
    enough = threading.Event()

    def one(outcome: Outcome) -> Outcome:
        ask(client, outcome, tokens[outcome.streamed])
        if not outcome.streamed and next(answered) == 10:
            enough.set()
        return outcome

    with ThreadPoolExecutor(6) as wholes, ThreadPoolExecutor(2) as streams:
        asked = [wholes.submit(one, outcome) for outcome in whole]
        asked += [streams.submit(one, outcome) for outcome in streamed]
        assert enough.wait(60)
        os.kill(victim, 9)
        outcomes = [outcome.result() for outcome in asked]
    for outcome in outcomes:
        text = expected(alone, outcome, tokens[outcome.streamed])
        if outcome.error is None:
            assert outcome.text == text
        else:
            assert outcome.streamed, outcome.error
            assert outcome.text, outcome.error
            assert text.startswith(outcome.text.rstrip("\ufffd"))  # half a character may be held
            assert outcome.error.code == "replica_lost"
            assert "ask again" in outcome.error.message
    broken = sum(outcome.error is not None for outcome in outcomes)
    after = metrics(cluster)
    retried = round(after["ingress_retries_total"] - before["ingress_retries_total"])
    assert after["ingress_lost_total"] - before["ingress_lost_total"] == broken
    assert retried + broken <= 8  # connections
    wait_until(lambda: len(set(cluster.replicas) - {victim}) == 2)
    wait_until(lambda: metrics(cluster)["replicas"] == 2)
    return retried + broken


def test_a_killed_replica_loses_nothing_that_had_not_begun(
    cluster: Cluster, client: openai.OpenAI, alone: Callable[..., str]
) -> None:
    # Between two requests of its own a replica has none for a moment, so one kill may hit nothing.
    assert any(hit_by_a_kill(cluster, client, alone) for _ in range(5))


def test_replicas_that_are_replaced_finish_what_they_have(
    cluster: Cluster,
    client: openai.OpenAI,
    alone: Callable[..., str],
    tiny_bundles: dict[str, Path],
) -> None:
    tokens = 1000
    outcomes = [Outcome(number, streamed=True) for number in range(8)]
    before = cluster.replicas
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(ask, client, outcome, tokens) for outcome in outcomes]
        wait_until(lambda: all(outcome.text for outcome in outcomes), every=0.01)
        running = sum(not one.done() for one in asked)
        cluster.deploy(bundle=str(tiny_bundles["fp32"]), replicas=1, max_waiting=16, **SETTINGS)
    assert running
    for outcome in outcomes:
        assert outcome.error is None
        assert outcome.text == expected(alone, outcome, tokens)
    wait_until(lambda: len(cluster.replicas) == 1)
    assert cluster.replicas[0] not in before


def test_replicas_are_added_when_requests_wait(
    cluster: Cluster, client: openai.OpenAI, tiny_bundles: dict[str, Path]
) -> None:
    bundle = str(tiny_bundles["fp32"])
    cluster.deploy(bundle=bundle, replicas=1, max_waiting=16, **SETTINGS)
    wait_until(lambda: metrics(cluster)["replicas"] == 1)
    cluster.deploy(
        bundle=bundle,
        autoscaling={"min": 1, "max": 2, "target": 2, "up_after": 0.5, "down_after": 60},
        **SETTINGS,
    )
    wait_until(lambda: metrics(cluster)["replicas"] == 1)
    stop = threading.Event()

    def keep_asking(number: int) -> None:
        while not stop.is_set():
            assert ask(client, Outcome(number, streamed=False), 200).error is None

    with ThreadPoolExecutor(8) as pool:
        asking = [pool.submit(keep_asking, number) for number in range(8)]
        try:
            wait_until(lambda: metrics(cluster)["replicas"] == 2)
        finally:
            stop.set()
        for one in asking:
            one.result()


def status(cluster: Cluster, path: str, *, body: bytes | None = None, **headers: str) -> int:
    """Of a request; header names have underscores for dashes."""
    made = Request(
        f"{cluster.address}{path}",
        body,
        {name.replace("_", "-"): value for name, value in headers.items()},
    )
    try:
        with urlopen(made, timeout=20) as response:
            return int(response.status)
    except HTTPError as error:
        return error.code


def test_other_names_and_pages_need_leave(cluster: Cluster) -> None:
    for path in ("/v1/models", "/health"):
        assert status(cluster, path) == status(cluster, path, Host="localhost:1") == 200
        assert status(cluster, path, Host="evil.example") == 421
        assert status(cluster, path, Origin="https://evil.example") == 403


def test_keys_and_a_route_prefix(
    cluster: Cluster, tiny_bundles: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "keys").write_text(f"anna:{hash_key('a key of annas')}\n")
    bundle, keys = str(tiny_bundles["fp32"]), str(tmp_path / "keys")
    cluster.deploy(bundle=bundle, replicas=1, api_key_file=keys, route_prefix="/llm", **SETTINGS)
    wait_until(lambda: status(cluster, "/llm/ready") == 200)
    key = {"Authorization": "Bearer a key of annas"}
    asked = {"body": b'{"prompt": "a", "max_tokens": 2}', "Content_Type": "application/json"}
    assert status(cluster, "/llm/v1/models") == 401
    assert status(cluster, "/llm/v1/completions", **asked) == 401
    assert status(cluster, "/llm/v1/models", **key) == 200
    assert status(cluster, "/llm/v1/completions", **asked, **key) == 200
    assert status(cluster, "/llm/nothing", **key) == 404
    assert status(cluster, "/llm/openapi.json") == status(cluster, "/llm/metrics") == 200
    assert status(cluster, "/v1/models", **key) == 404


def test_nothing_is_sent_to_rays_authors(cluster: Cluster) -> None:
    """What the cluster says of itself: statistics are off, and so is the word that they are."""
    titled = cluster.processes("ray::")  # whose title has overwritten their environment
    others = [process for process in cluster.processes() if process not in titled]
    assert len(others) > 2
    for process in others:
        environment = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
        assert b"RAY_USAGE_STATS_ENABLED=0" in environment
        assert b"RAY_USAGE_STATS_REPORT_URL=http://127.0.0.1:9/" in environment
