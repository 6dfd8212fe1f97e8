"""What Fallow trains or upcycles and no other architecture is: its config.json says everything under `fallow`."""

from __future__ import annotations

from typing import Any

from runtime.moe.layout import ConfigJson, Family, SeparateExperts


def _config(raw: ConfigJson) -> dict[str, Any]:
    raise raw.wrong("fallow", "is missing: it describes the architecture of a model that Fallow wrote")


FAMILY = Family(
    kind="fallow",
    architecture="FallowForCausalLM",
    config=_config,
    experts=(SeparateExperts(parts=("w1", "w2")),),
)
