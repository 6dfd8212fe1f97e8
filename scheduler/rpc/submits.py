"""From a submitted spec to the event of its acceptance: everything that planning needs, read once. Pure."""

from __future__ import annotations

from protocol.jobspec import InvalidSpec, JobSpec, parse_json
from protocol.models import ModelConfig
from scheduler.domain.events import JobSubmitted
from scheduler.domain.jobs import JobKind, ModelShape, Role, RoleNeed
from scheduler.domain.reasons import Reason, Refused

TRAINING_BYTES = 16
"""Bytes a parameter takes while training: itself, its gradient and two moments of AdamW, in fp32."""
SERVING_BYTES = 4
"""Bytes a parameter takes while serving, in fp32."""
MOST_EXPERTS = 65_536
"""(layer, expert) pairs of one model that a plan can spread."""
MOST_BYTES = 2**50
"""Bytes of one model's state; no set of borrowed nodes holds more."""


def read_spec(spec_json: str) -> JobSpec:
    """The spec, or `Refused` with one line for each fault."""
    try:
        spec = parse_json(spec_json)
    except InvalidSpec as error:
        raise _invalid("; ".join(error.problems) + ".") from error
    problems = _impossible(spec)
    if problems:
        raise _invalid("; ".join(problems) + ".")
    return spec


def submitted(
    spec: JobSpec, spec_json: str, job: str, user: str, request_id: str, at_s: float, cause_id: str
) -> JobSubmitted:
    """The event for the loop."""
    return JobSubmitted(
        at_s=at_s,
        cause_id=cause_id,
        job=job,
        name=spec.name,
        kind=JobKind(spec.kind),
        user=user,
        request_id=request_id,
        spec_json=spec_json,
        needs=_needs(spec),
        weight=spec.weight,
        device_kinds=tuple(spec.device_kinds),
        shape=_shape(spec),
        copies=spec.serve.copies if spec.serve else 1,
        wanted=((Role.ENGINE, spec.serve.engines.min),) if spec.serve else (),
        priority=spec.priority,
        deadline_s=None if spec.deadline is None else spec.deadline.timestamp(),
        budget_device_s=None if spec.budget_device_hours is None else spec.budget_device_hours * 3600,
    )


def _needs(spec: JobSpec) -> tuple[RoleNeed, ...]:
    if spec.serve is not None:
        return tuple(RoleNeed(Role(role), width.min, width.max) for role, width in spec.serve.roles.items())
    role = Role.TRAINER if spec.kind == "train" else Role.RUNNER
    return (RoleNeed(role, spec.min_width, spec.max_width),)


def _model(spec: JobSpec) -> ModelConfig | None:
    if spec.train is not None:
        return spec.train.model
    return spec.serve.shape if spec.serve is not None else None


def _shape(spec: JobSpec) -> ModelShape | None:
    model = _model(spec)
    if model is None:
        return None
    each = TRAINING_BYTES if spec.train is not None else SERVING_BYTES
    return ModelShape(model.expert_layers, model.experts, model.expert_parameters * each, model.dense_parameters * each)


def _impossible(spec: JobSpec) -> list[str]:
    """Sizes that no set of nodes can satisfy."""
    problems = []
    model = _model(spec)
    if model is not None:
        part = "train.model" if spec.train is not None else "serve.shape"
        pairs = model.expert_layers * model.experts
        total = model.parameters * (TRAINING_BYTES if spec.train is not None else SERVING_BYTES)
        if pairs > MOST_EXPERTS:
            problems.append(f"{part}: layers x experts is {pairs}, more than {MOST_EXPERTS}: lower one of them")
        if total > MOST_BYTES:
            problems.append(f"{part}: {total / 2**40:.0f} TiB of state, more than {MOST_BYTES >> 40}: make it smaller")
    if spec.train is not None and spec.min_width > spec.train.global_batch:
        batch = spec.train.global_batch
        problems.append(
            f"width.min: {spec.min_width} trainers share {batch} sequences a step: raise train.global_batch"
        )
    return problems + _impossible_serving(spec)


def _impossible_serving(spec: JobSpec) -> list[str]:
    serve = spec.serve
    if serve is None:
        return []
    if serve.shape is None:
        return ["serve.shape: missing: submit with `fallow submit`, which reads it from the model's config.json"]
    if "shard" not in serve.roles:
        return []
    problems = []
    if serve.copies > serve.shards.max:
        problems.append(f"serve.copies: {serve.copies} copies need as many shards: raise serve.shards.max")
    pairs = serve.shape.expert_layers * serve.shape.experts
    if serve.shards.min > pairs * serve.copies:
        problems.append(f"serve.shards.min: {serve.shards.min} shards are more than there are experts: lower it")
    return problems


def _invalid(problems: str) -> Refused:
    return Refused(Reason("invalid_spec", problems, "Mend these fields and submit again."))
