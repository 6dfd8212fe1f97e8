"""A dense model, from the folder to the answer, on the path that users take."""

from __future__ import annotations

from pathlib import Path

import openai
import pytest
import yaml

from fallow.local_cluster import LocalCluster
from runtime.serving.text import TextCodec
from tests.end_to_end.conftest import Fallow
from tests.end_to_end.small import until
from tests.moe.hf_models import saved
from tests.serving.models import byte_tokenizer, greedy

pytestmark = pytest.mark.slow


def test_a_dense_model_is_served_by_its_engine_alone(cluster: LocalCluster, fallow: Fallow, tmp_path: Path) -> None:
    folder = tmp_path / "dense"
    saved("llama", folder)
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    part = {"model": str(folder), "max_length": 64}
    path = tmp_path / "serve.yaml"
    path.write_text(yaml.safe_dump({"kind": "serve", "name": "dense", "serve": part}))
    checked = fallow("submit", "--check", "--json", str(path)).json
    assert checked["memory"]["expert_bytes"] == 0
    assert checked["fit"]["fits"]
    job = until(
        cluster.client, cluster.client.submit(path).job, lambda now: bool(now.endpoint) and now.state == "running"
    )
    assert [worker.role for worker in job.workers] == ["engine"]
    client = openai.OpenAI(base_url=f"{job.endpoint.removesuffix('/v1')}/v1", api_key="any", timeout=60, max_retries=0)
    prompt = [3, 17, 40, 5]
    answer = client.completions.create(
        model="dense", prompt=prompt, max_tokens=8, temperature=0, extra_body={"ignore_eos": True}
    )
    assert answer.choices[0].text == TextCodec.from_folder(folder).decode(greedy(folder, prompt, 8))
