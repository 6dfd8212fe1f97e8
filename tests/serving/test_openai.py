"""The endpoint as the official client sees it: answers, streams, errors, limits; and jobs that must be refused."""

from __future__ import annotations

import json
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai
import pytest
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from protocol.jobspec import InvalidSpec, parse
from runtime.serving.text import TextCodec
from tests.serving.harness import Served, shard_slots, slot
from tests.serving.models import greedy, write_model

pytestmark = pytest.mark.slow

KEY = "a-token-of-the-test"
ON = {"ignore_eos": True}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("model") / "m"
    config = write_model(folder, layers=1, experts=4)
    served = Served(folder, tmp_path_factory.mktemp("job"), api_key=KEY, max_length=64, max_batch=2, queue_limit=1)
    served.assign([slot("engine-0", "engine", "n9"), *shard_slots(config, 2, 1)], "start")
    yield served
    served.close()


@pytest.fixture
def client(served: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key=KEY, timeout=60, max_retries=0)


@pytest.fixture
def codec(served: Served) -> TextCodec:
    return TextCodec.from_folder(Path(served.spec.serve.model))  # type: ignore[union-attr]


def _reference(served: Served, prompt: list[int], count: int) -> list[int]:
    return greedy(Path(served.spec.serve.model), prompt, count)  # type: ignore[union-attr]


def test_the_model_is_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "fallow"
    with pytest.raises(openai.NotFoundError, match="use 'tiny'"):
        client.models.retrieve("gpt-4")


def test_a_completion_of_text(client: openai.OpenAI, served: Served, codec: TextCodec) -> None:
    prompt = codec.encode("节点 🙂")
    answer = client.completions.create(model="tiny", prompt="节点 🙂", max_tokens=20, temperature=0, extra_body=ON)
    assert answer.choices[0].text == codec.decode(_reference(served, prompt, 20))
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(prompt), 20)


def test_a_stream_is_the_same_text_with_its_usage(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "tiny", "prompt": "fox", "max_tokens": 30, "temperature": 0, "extra_body": ON}
    whole = client.completions.create(**asked).choices[0].text
    chunks = list(client.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == whole
    assert chunks[-1].usage.completion_tokens == 30
    assert [choice.finish_reason for chunk in chunks for choice in chunk.choices][-1] == "length"
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_chat_and_its_stream(client: openai.OpenAI, served: Served, codec: TextCodec) -> None:
    messages: Any = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "你"}, {"type": "text", "text": "好"}]},
    ]
    prompt = codec.encode("system: Be brief.\nuser: 你好\nassistant:")
    asked: dict[str, Any] = {"model": "tiny", "messages": messages, "max_tokens": 15, "temperature": 0}
    answer = client.chat.completions.create(**asked, extra_body=ON)
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content == codec.decode(_reference(served, prompt, 15))
    chunks = list(client.chat.completions.create(**asked, extra_body=ON, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == answer.choices[0].message.content


def test_an_untouched_langchain_client_works(client: openai.OpenAI, served: Served) -> None:
    asked: Any = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "你好"}],
        "max_tokens": 15,
        "temperature": 0,
    }
    answer = client.chat.completions.create(**asked)
    chain = ChatPromptTemplate.from_messages([("user", "{greeting}")]) | ChatOpenAI(
        base_url=f"{served.url}/v1", api_key=SecretStr(KEY), model="tiny", temperature=0, max_completion_tokens=15
    )
    said = chain.invoke({"greeting": "你好"})
    assert said.content == answer.choices[0].message.content
    assert said.response_metadata["finish_reason"] == answer.choices[0].finish_reason
    assert answer.usage is not None
    assert said.usage_metadata is not None
    assert said.usage_metadata["total_tokens"] == answer.usage.total_tokens
    assert "".join(str(chunk.content) for chunk in chain.stream({"greeting": "你好"})) == said.content
    others = chain.batch([{"greeting": "你好"}, {"greeting": "fox"}], config={"max_concurrency": 2})
    assert others[0].content == said.content


def test_a_chat_without_a_limit_ends_with_the_model_or_its_context(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "hi"}], seed=1)
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage is not None
    assert answer.usage.total_tokens <= 64


def test_an_end_token_ends_the_answer_and_is_not_shown(client: openai.OpenAI, served: Served, codec: TextCodec) -> None:
    for start in range(10, 60):
        tokens = _reference(served, [start], 40)
        if 0 in tokens[1:]:
            break
    else:
        pytest.skip("this model never ends by itself")
    answer = client.completions.create(model="tiny", prompt=[start], max_tokens=40, temperature=0)
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].text == codec.decode(tokens[: tokens.index(0)])


def test_a_stop_string_cuts_the_text_wherever_tokens_end(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "tiny", "prompt": "dog", "max_tokens": 40, "temperature": 0, "extra_body": ON}
    whole = client.completions.create(**asked).choices[0].text
    stop = whole[7:10]
    want = whole[: whole.find(stop)]
    answer = client.completions.create(**asked, stop=stop)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == (want, "stop")
    assert answer.usage is not None
    assert answer.usage.completion_tokens < 40
    stream = client.completions.create(**asked, stop=[stop], stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == want


def test_seeds_choices_and_several_prompts(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "tiny", "max_tokens": 12, "temperature": 1.5, "extra_body": ON}
    first = client.completions.create(**asked, prompt="fox", seed=3).choices[0].text
    assert client.completions.create(**asked, prompt="fox", seed=3).choices[0].text == first
    assert client.completions.create(**asked, prompt="fox", seed=4).choices[0].text != first
    several = client.completions.create(**asked, prompt=["fox", "dog"], seed=3)
    assert [choice.index for choice in several.choices] == [0, 1]
    assert several.choices[0].text == first
    twice = client.chat.completions.create(**asked, messages=[{"role": "user", "content": "x"}], n=2, seed=3)
    assert twice.choices[0].message.content != twice.choices[1].message.content


def test_penalties_bias_and_stop_tokens(client: openai.OpenAI, served: Served) -> None:
    asked: dict[str, Any] = {"model": "tiny", "prompt": [40, 41], "max_tokens": 12, "temperature": 0}
    plain = _reference(served, [40, 41], 12)

    def tokens(extra: dict[str, Any], **fields: Any) -> int:
        answer = client.completions.create(**asked, **fields, extra_body=ON | extra)
        assert answer.usage is not None
        return answer.usage.completion_tokens

    assert tokens({"stop_token_ids": [plain[0]]}) == 1
    assert tokens({"stop_token_ids": [plain[0]]}, logit_bias={str(plain[0]): -100}) == 12
    neutral = {"min_p": 0.0, "repetition_penalty": 1.0, "priority": -5}
    same = client.completions.create(**asked, presence_penalty=0, extra_body=ON | neutral).choices[0].text
    assert same == client.completions.create(**asked, extra_body=ON).choices[0].text
    shy = client.completions.create(**asked, presence_penalty=2, frequency_penalty=2, logprobs=0, extra_body=ON)
    assert shy.choices[0].text != same


def test_log_probabilities(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="tiny", prompt="a", max_tokens=5, temperature=0, logprobs=3, extra_body=ON)
    scores = answer.choices[0].logprobs
    assert scores is not None
    assert len(scores.tokens or []) == len(scores.token_logprobs or []) == 5
    for chosen, top in zip(scores.token_logprobs or [], scores.top_logprobs or [], strict=True):
        assert chosen == max(top.values())
    chat = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "x"}], max_tokens=4, logprobs=True, top_logprobs=2,
        temperature=0, extra_body=ON,
    )  # fmt: skip
    content = chat.choices[0].logprobs.content  # type: ignore[union-attr]
    assert content is not None
    assert [len(token.top_logprobs) for token in content] == [2] * 4


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"model": "gpt-4"}, "use 'tiny'"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": [999_999]}, "999999"),
        ({"prompt": "x " * 200}, "no room"),
        ({"frequency_penalty": 3.0}, "frequency_penalty"),
        ({"suffix": "x"}, "suffix is not supported"),
        ({"logit_bias": {"999999": 1}}, "logit_bias: 999999"),
        ({"logit_bias": {"one": 1}}, "logit_bias"),
        ({"extra_body": {"min_p": 2}}, "min_p"),
        ({"extra_body": {"repetition_penalty": 0}}, "repetition_penalty"),
        ({"extra_body": {"stop_token_ids": [-1]}}, "stop_token_ids"),
        ({"extra_body": {"priority": "high"}}, "priority"),
        ({"n": 99}, "n:"),
        ({"stop": [""]}, "stop"),
        ({"extra_body": {"echo": True}}, "echo"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(client: openai.OpenAI, fields: dict[str, Any], word: str) -> None:
    with pytest.raises(openai.APIStatusError, match=word) as refused:
        client.completions.create(**{"model": "tiny", "prompt": "x", "max_tokens": 3, **fields})
    assert refused.value.status_code in (400, 404)
    assert isinstance(refused.value.body, dict)
    assert refused.value.body["message"]


@pytest.mark.parametrize(("body", "status"), [(b"{", 400), (b"[]", 400), (b"{}", 400), (b"\xff", 400)])
def test_a_body_that_is_no_request_is_refused(served: Served, body: bytes, status: int) -> None:
    headers = {"Authorization": f"Bearer {KEY}"}
    answer = httpx.post(f"{served.url}/v1/chat/completions", content=body, headers=headers)
    assert answer.status_code == status
    assert answer.json()["error"]["message"]


def test_unknown_paths_and_wrong_tokens(served: Served) -> None:
    assert httpx.get(f"{served.url}/v1/nothing").json()["error"]["type"] == "not_found_error"
    assert httpx.get(f"{served.url}/v1/completions").status_code == 405
    for key in ("", "Bearer wrong"):
        answer = httpx.get(f"{served.url}/v1/models", headers={"Authorization": key})
        assert answer.status_code == 401
        assert answer.json()["error"]["code"] == "invalid_api_key"
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{served.url}/v1", api_key="wrong", max_retries=0).models.list()


def test_health_and_metrics(served: Served) -> None:
    assert httpx.get(f"{served.url}/health").json()["status"] == "ok"
    text = httpx.get(f"{served.url}/metrics").text
    assert 'vllm:num_requests_running{model_name="tiny"} 0' in text
    assert "vllm:generation_tokens_total" in text


def test_a_full_queue_says_when_to_come_back_and_hung_up_clients_make_room(served: Served) -> None:
    headers = {"Authorization": f"Bearer {KEY}"}
    body = {"model": "tiny", "prompt": "x", "max_tokens": 60, "temperature": 0, "ignore_eos": True, "stream": True}
    served.actors.kill("engine-0", signal.SIGSTOP)  # requests stay where they are
    try:
        clients = [_ask(served.url, body, headers) for _ in range(3)]
        served.wait(lambda: _under_way(served) == 3, "three requests under way")
        answer = httpx.post(f"{served.url}/v1/completions", json=body, headers=headers)
        assert answer.status_code == 429
        assert int(answer.headers["Retry-After"]) > 0
        assert answer.json()["error"]["type"] == "rate_limit_error"
        for client in clients:
            client.close()
        served.wait(lambda: _under_way(served) == 0, "nobody left")
    finally:
        served.actors.kill("engine-0", signal.SIGCONT)
    answer = httpx.post(f"{served.url}/v1/completions", json={**body, "stream": False}, headers=headers, timeout=60)
    assert answer.json()["usage"]["completion_tokens"] == 60


def test_a_client_that_hangs_up_in_mid_stream_frees_its_place(served: Served, client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "tiny", "prompt": "x", "max_tokens": 60, "temperature": 0, "extra_body": ON}
    for _ in range(3):
        stream = client.completions.create(**asked, stream=True)
        next(iter(stream))
        stream.close()
    served.wait(lambda: _under_way(served) == 0, "nobody left")


def _ask(url: str, body: dict[str, Any], headers: dict[str, str]) -> HTTPConnection:
    """A client that asks and does not read."""
    connection = HTTPConnection(urlsplit(url).netloc)
    connection.request("POST", "/v1/completions", json.dumps(body), headers)
    return connection


def _under_way(served: Served) -> float:
    counts = httpx.get(f"{served.url}/health").json()
    return counts["running"] + counts["waiting"]


def _ended(served: Served) -> tuple[str, str]:
    served.wait(lambda: served.reports.all("ended"), "an end")
    _, outcome, message = served.reports.all("ended")[0][0]
    return outcome, message


@pytest.mark.parametrize(
    ("break_it", "named"),
    [
        (lambda folder: shutil.rmtree(folder), "tokenizer.json"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "strange"}'), "config.json"),
        (lambda folder: _forget_tensor(folder, "layers.0.mlp.experts.3.w1"), "layers.0.mlp.experts.3.w1"),
        (lambda folder: _forget_tensor(folder, "lm_head"), "lm_head"),
    ],
    ids=["no folder", "unknown architecture", "an expert missing", "a dense tensor missing"],
)
def test_an_unusable_model_ends_the_job_by_name(tmp_path: Path, break_it: Callable[[Path], Any], named: str) -> None:
    config = write_model(tmp_path / "m", layers=1, experts=4)
    break_it(tmp_path / "m")
    served = Served(tmp_path / "m", tmp_path / "job")
    try:
        served.assign([slot("engine-0", "engine", "n9"), *shard_slots(config, 1, 1)], "start", wait=False)
        outcome, message = _ended(served)
        assert outcome == "failed"
        assert named in message
        assert str(tmp_path) in message
        assert not served.actors.handles
    finally:
        served.close()


def test_a_port_in_use_ends_the_job_by_name(tmp_path: Path) -> None:
    config = write_model(tmp_path / "m", layers=1, experts=4)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        served = Served(tmp_path / "m", tmp_path / "job", port=port)
        try:
            served.assign([slot("engine-0", "engine", "n9"), *shard_slots(config, 1, 1)], "start", wait=False)
            outcome, message = _ended(served)
            assert outcome == "failed"
            assert f"127.0.0.1:{port}" in message
        finally:
            served.close()


def _forget_tensor(folder: Path, part: str) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"] = {name: file for name, file in index["weight_map"].items() if part not in name}
    path.write_text(json.dumps(index))


def test_an_open_address_without_a_token_is_refused() -> None:
    with pytest.raises(InvalidSpec, match="api_key"):
        parse({"kind": "serve", "name": "x", "serve": {"model": "m", "host": "0.0.0.0"}})
    assert parse({"kind": "serve", "name": "x", "serve": {"model": "m", "host": "0.0.0.0", "api_key": KEY}})
