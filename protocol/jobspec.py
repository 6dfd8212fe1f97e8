"""The job spec: what a user writes in YAML and submits. Strict: what is not understood is refused by its path."""

from __future__ import annotations

import re
from datetime import datetime
from ipaddress import ip_address
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

from protocol.models import PRESETS, ModelConfig

MAX_SPEC_BYTES = 1_000_000
"""A spec larger than this is refused unread."""

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
Text = Annotated[str, StringConstraints(min_length=1, max_length=4096)]
FunctionName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]


class InvalidSpec(ValueError):
    """A job spec that cannot be accepted; `problems` has one `path: what is wrong` line for each fault."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


class Part(BaseModel):
    """Base of every part of a spec: no unknown fields, no silent conversion, frozen once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def _safe_path(value: str) -> str:
    path = PurePosixPath(value)
    if "\0" in value or ".." in path.parts:
        raise ValueError("a path may not contain '..' or a NUL byte: name the place itself")
    return value


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Width(Part):
    """Between how many workers a job can run."""

    min: Annotated[int, Field(ge=1, le=100_000)] = 1
    max: Annotated[int, Field(ge=1, le=100_000)] = 1

    @model_validator(mode="after")
    def _ordered(self) -> Width:
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) is greater than max ({self.max}): no width satisfies both")
        return self


class Optimizer(Part):
    """AdamW with linear warm-up and cosine decay."""

    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-3
    warmup_steps: Annotated[int, Field(ge=0)] = 20
    final_fraction: Annotated[float, Field(ge=0, le=1)] = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    eps: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    clip_norm: Annotated[float, Field(gt=0)] | None = 1.0

    @field_validator("betas", mode="before")
    @classmethod
    def _pair(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value


class TrainPart(Part):
    """Elastic training: of a built-in model on text, or of whatever a function of the user's own trains."""

    preset: str | None = Field(default=None, description="name of an architecture in protocol.models.PRESETS")
    model: ModelConfig | None = Field(default=ModelConfig(), description="none with a function")
    function: FunctionName | None = Field(
        default=None,
        description="'module:function', importable on the nodes; called with a fallow.ElasticSession by every worker",
    )
    pickled: str | None = Field(default=None, description="base64 of a cloudpickled function, written by fallow.Client")
    data: Text = Field(
        default="pydoc",
        description="'pydoc': the documentation inside every Python; else a path or fsspec URL: UTF-8 text, JSON lines "
        "(.jsonl, field 'text'), or token ids (.npy), packed with .gz or not",
    )
    tokenizer: Text | None = Field(
        default=None, description="Hugging Face folder with a tokenizer.json; left out, one is trained on the data"
    )
    eval_data: Text | None = Field(default=None, description="held-out data, as `data`; needs eval_every")
    eval_every: Annotated[int, Field(ge=1)] | None = Field(default=None, description="steps between evaluations")
    eval_samples: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        default=64, description="sequences of eval_data that an evaluation takes, the same each time"
    )
    start: Text | None = Field(
        default=None, description="folder of a model of the same architecture, to start from its values"
    )
    steps: Annotated[int, Field(ge=1, le=100_000_000)] = 200
    global_batch: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        default=16, description="sequences per step, at any width"
    )
    accumulate: Annotated[int, Field(ge=1, le=10_000)] = Field(
        default=1, description="parts that a step's batch is worked on in, one after another, to save memory"
    )
    sequence_length: Annotated[int, Field(ge=2, le=1_000_000)] = 128
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    optimizer: Optimizer = Optimizer()
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="of matrix products; parameters, optimiser state and sums over workers are float32 or wider",
    )
    snapshot_every: Annotated[int, Field(ge=1, le=10_000)] = Field(
        default=8, description="steps between in-memory snapshots"
    )
    checkpoint_every: Annotated[int, Field(ge=1)] = Field(default=100, description="steps between checkpoints")
    checkpoints: Text | None = Field(
        default=None,
        description="folder or fsspec URL for this job's checkpoints alone; a job that finds some there goes on from "
        "the newest; left out, they lie with the job",
    )
    keep_checkpoints: Annotated[int, Field(ge=1, le=10_000)] = Field(default=2, description="newest ones that stay")
    keep_checkpoint_hours: Annotated[float, Field(ge=0, le=1e6)] = Field(
        default=0.0, description="younger ones than this stay, too"
    )
    output: Text = Field(description="folder for checkpoints and the finished model")

    @field_validator("data", "output", "tokenizer", "eval_data", "start", "checkpoints")
    @classmethod
    def _paths(cls, value: str | None) -> str | None:
        return value if value is None else _safe_path(value)

    @property
    def is_own(self) -> bool:
        """Whether a function of the user's own trains, instead of the built-in model's training."""
        return self.function is not None or self.pickled is not None

    @model_validator(mode="before")
    @classmethod
    def _one_thing_to_train(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        functions = [name for name in ("function", "pickled") if value.get(name) is not None]
        if not functions:
            return value
        builtin = ("preset", "model", "tokenizer", "eval_data", "start")
        given = [name for name in builtin if value.get(name) is not None]
        if given or len(functions) > 1:
            raise ValueError(
                f"{' and '.join([*functions, *given])}: give one; a function brings its own model and data"
            )
        return {**value, "model": None}

    @model_validator(mode="after")
    def _something_to_train(self) -> TrainPart:
        if self.model is None and not self.is_own:
            raise ValueError("give a model, a preset, or a function that trains one")
        if (self.eval_data is None) != (self.eval_every is None):
            raise ValueError("eval_data and eval_every: give both or neither")
        if self.accumulate > self.global_batch:
            raise ValueError(
                f"accumulate: a batch of {self.global_batch} cannot be worked on in {self.accumulate} parts"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _apply_preset(cls, value: Any) -> Any:
        if not isinstance(value, dict) or value.get("preset") is None:
            return value
        preset = value["preset"]
        if preset not in PRESETS:
            raise ValueError(f"preset {preset!r} is not known: use one of {', '.join(sorted(PRESETS))}")
        fields = value.get("model") or {}
        if not isinstance(fields, dict):
            return value
        return {**value, "model": {**PRESETS[preset].model_dump(), **fields}}

    @field_validator("model")
    @classmethod
    def _trainable(cls, model: ModelConfig | None) -> ModelConfig | None:
        if model is None:
            return None
        if model.expert_kind != "silu":
            raise ValueError("expert_kind: training knows only experts of gated SiLU; leave it out")
        if not model.expert_layers:
            raise ValueError("dense_layers: no layer is left for experts; lower it, or train a function of your own")
        return model


class ServePart(Part):
    """An OpenAI-compatible endpoint for a model whose experts lie on several nodes."""

    model: Text = Field(description="Hugging Face folder, e.g. the output of a train job")
    shape: ModelConfig | None = Field(
        default=None, description="filled in from the folder's config.json by the client when it submits"
    )
    engines: Width = Width(min=1, max=1)
    shards: Width = Width(min=1, max=2)
    copies: Annotated[int, Field(ge=1, le=8)] = Field(default=2, description="live copies wanted of every expert")
    max_batch: Annotated[int, Field(ge=1, le=4096)] = 16
    max_length: Annotated[int, Field(ge=2, le=10_000_000)] = 1024
    queue_limit: Annotated[int, Field(ge=1, le=1_000_000)] = 256
    idle_s: Annotated[float, Field(ge=1, le=1e9)] | None = Field(
        default=None,
        description="once up, after so long without a request it gives all nodes up, until the next; none: never",
    )
    host: Text = Field(default="127.0.0.1", description="address of the site's machine that the endpoint listens on")
    port: Annotated[int, Field(ge=0, le=65_535)] = Field(default=0, description="0: any free port")
    api_key: Annotated[str, StringConstraints(min_length=8, max_length=512)] | None = Field(
        default=None, repr=False, description="token that clients must send; needed on any but a loopback address"
    )

    _paths = field_validator("model")(_safe_path)

    @property
    def roles(self) -> dict[Literal["engine", "shard"], Width]:
        """How many workers of each role: a dense model, once its shape is known, has no shards."""
        if self.shape is not None and not self.shape.expert_layers:
            return {"engine": self.engines}
        return {"engine": self.engines, "shard": self.shards}

    @model_validator(mode="after")
    def _closed_to_strangers(self) -> ServePart:
        if self.api_key is None and not _is_loopback(self.host):
            raise ValueError(f"host: {self.host} can be reached from outside: set api_key, or listen on 127.0.0.1")
        return self


Scalar = str | int | float | bool


class TaskPart(Part):
    """A command, or a Python function, over an array of parameters. `{name}` in the command stands for a parameter."""

    command: Annotated[list[Text], Field(min_length=1, max_length=1000)] | None = None
    function: FunctionName | None = Field(default=None, description="'module:function', importable on the nodes")
    pickled: str | None = Field(default=None, description="base64 of a cloudpickled function, written by fallow.Client")
    array: Annotated[list[dict[str, Scalar]], Field(min_length=1, max_length=1_000_000)] = [{}]
    retries: Annotated[int, Field(ge=0, le=100)] = Field(
        default=2, description="for an item's own failures; reclaims never count"
    )
    timeout_s: Annotated[float, Field(gt=0)] | None = None
    output: Text = Field(description="folder for results and logs of the items")

    _paths = field_validator("output")(_safe_path)

    @model_validator(mode="after")
    def _one_thing_to_run(self) -> TaskPart:
        if sum(x is not None for x in (self.command, self.function, self.pickled)) != 1:
            raise ValueError("give exactly one of command, function")
        return self


class JobSpec(Part):
    """One job as submitted."""

    kind: Literal["train", "serve", "task"]
    name: Name
    width: Width | None = Field(
        default=None, description="workers of a train or task job; a serve job has engines and shards"
    )
    weight: Annotated[float, Field(gt=0, le=1000)] = 1.0
    priority: Annotated[int, Field(ge=-5, le=5)] = Field(
        default=0, description="each step doubles what its work counts"
    )
    deadline: AwareDatetime | None = Field(
        default=None, description="when it is wanted: a time with its zone, such as 2026-12-01T18:00:00+01:00"
    )
    budget_device_hours: Annotated[float, Field(gt=0, le=1e9)] | None = Field(
        default=None, description="device-hours that it may use in all; then it waits"
    )
    device_kinds: list[Name] = Field(default=[], description="kinds of device it can use; empty: any")
    train: TrainPart | None = None
    serve: ServePart | None = None
    task: TaskPart | None = None

    @field_validator("deadline", mode="before")
    @classmethod
    def _moment(cls, value: Any) -> Any:
        """YAML gives a time as such or as text, JSON as text; a time of day without its zone is no moment."""
        try:
            moment = datetime.fromisoformat(value) if isinstance(value, str) else value
        except ValueError:
            moment = None
        if value is not None and not (isinstance(moment, datetime) and moment.tzinfo):
            raise ValueError("must be a time with its zone, such as 2026-12-01T18:00:00+01:00")
        return moment

    @model_validator(mode="after")
    def _part_matches_kind(self) -> JobSpec:
        for part in ("train", "serve", "task"):
            present = getattr(self, part) is not None
            if part == self.kind and not present:
                raise ValueError(f"a {part} job needs a '{part}:' part")
            if part != self.kind and present:
                raise ValueError(f"a {self.kind} job cannot have a '{part}:' part: remove it or change kind")
        if self.kind == "serve" and self.width is not None:
            raise ValueError("width: a serve job is sized by serve.engines and serve.shards; remove width")
        return self

    @property
    def min_width(self) -> int:
        """Fewest workers that the job runs with."""
        if self.serve is not None:
            return sum(width.min for width in self.serve.roles.values())
        return (self.width or Width()).min

    @property
    def max_width(self) -> int:
        """Most workers that the job can use."""
        if self.serve is not None:
            return sum(width.max for width in self.serve.roles.values())
        return (self.width or Width()).max


def parse_yaml(text: str) -> JobSpec:
    """Read a job spec from YAML (or JSON). Raises `InvalidSpec` with a line for each fault."""
    if len(text.encode()) > MAX_SPEC_BYTES:
        raise InvalidSpec([f"spec: larger than {MAX_SPEC_BYTES} bytes; move data into files"])
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InvalidSpec(["spec: not YAML: " + re.sub(r"\s+", " ", str(error))]) from error
    if not isinstance(raw, dict):
        raise InvalidSpec(["spec: must be a mapping of fields such as 'kind:' and 'name:'"])
    return parse(raw)


def parse_json(text: str) -> JobSpec:
    """Read a job spec from the JSON that travels on the wire. Raises `InvalidSpec`."""
    if len(text.encode()) > MAX_SPEC_BYTES:
        raise InvalidSpec([f"spec: larger than {MAX_SPEC_BYTES} bytes; move data into files"])
    try:
        return JobSpec.model_validate_json(text)
    except ValidationError as error:
        raise InvalidSpec(_problems(error)) from error


def parse(raw: dict[str, Any]) -> JobSpec:
    """Read a job spec from a mapping. Raises `InvalidSpec`."""
    try:
        return JobSpec.model_validate(raw)
    except ValidationError as error:
        raise InvalidSpec(_problems(error)) from error


def _problems(error: ValidationError) -> list[str]:
    return [
        f"{'.'.join(str(p) for p in fault['loc']) or 'spec'}: {fault['msg'].removeprefix('Value error, ')}"
        for fault in error.errors()
    ]
