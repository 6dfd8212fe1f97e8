"""What `fallow pilots` is told, in a YAML file and on its command line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from agents.pilots.lengths import HPC_WHISK_S

Count = Annotated[int, Field(ge=1, le=100_000)]
Minutes = Annotated[float, Field(ge=1, le=30 * 24 * 60)]


class InvalidSettings(Exception):
    """The settings cannot be used; the message says which one, and what is wrong with it."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Place(_Strict):
    """Where pilots go."""

    partition: str = Field(default="", description="partition (Slurm) or queue (OpenPBS)")
    qos: str = Field(default="", description="quality of service (Slurm)")
    account: str = Field(default="", description="account to charge")
    constraint: str = Field(default="", description="features that nodes must have (Slurm)")
    exclusive: bool = Field(default=True, description="whole nodes")
    options: tuple[str, ...] = Field(default=(), description="further options of sbatch or qsub")
    hosts: tuple[str, ...] = Field(default=(), description="shell: hosts to use")
    start: str = Field(default="ssh -o BatchMode=yes {host} {command}", description="shell: runs a command there")
    environment: dict[str, str] = Field(default_factory=dict, description="variables of the pilot; no secrets")


class BagSettings(_Strict):
    """How many pilots of which lengths."""

    lengths_min: tuple[Minutes, ...] = Field(
        default=tuple(s / 60 for s in HPC_WHISK_S), description="lengths, in minutes", min_length=1
    )
    learn: int = Field(default=0, ge=0, le=20, description="use the so many best of the lengths; 0: all")
    each: Count = Field(default=10, description="pilots of one length that may wait at a time")
    pending: Count = Field(default=100, description="pilots of all lengths that may wait at a time")
    nodes: Count | None = Field(default=None, description="nodes to take at most")
    reserve: int = Field(default=0, ge=0, description="nodes never to ask for")

    @field_validator("lengths_min")
    @classmethod
    def _ascending(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(sorted(set(value)))


class AgentSettings(_Strict):
    """What a pilot's agent is given."""

    devices: Count | None = Field(default=None, description="groups of cores; left out: GPUs, else all")
    cores: Count | None = Field(default=None, description="cores of a group")
    memory_bytes: int | None = Field(default=None, ge=1, description="memory of a group")
    object_store_bytes: Annotated[int, Field(ge=78_643_200)] = 80_000_000
    ray: str = Field(default="", description="path of the ray executable on the nodes")
    address: str = Field(default="", description="address of the nodes; left out: found by itself")
    temp_dir: str = Field(default="", description="folder on the node for temporary files; left out: the node's own")


class Settings(_Strict):
    """Everything. Paths must be on a file system that login node and compute nodes share."""

    system: Literal["slurm", "openpbs", "shell"] = "slurm"
    site: str = Field(description="name of the site that pilots belong to")
    scheduler: str = Field(pattern=r"^.+:\d{1,5}$", description="HOST:PORT of Fallow's scheduler")
    token_file: Path = Field(description="holds a token of role site, user or viewer")
    agent_token_file: Path = Field(description="holds a token of role agent; readable by its user alone")
    dir: Path = Field(description="folder for pilots' settings and logs, shared with the nodes")
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    place: Place = Place()
    bag: BagSettings = BagSettings()
    agent: AgentSettings = AgentSettings()
    devices_per_node: Count = Field(default=1, description="devices of a node, until one has been seen")
    python: str = Field(default="", description="Python with Fallow on the nodes; left out: this one")
    notice_s: float | None = Field(default=None, ge=0, description="notice of the batch system; left out: asked of it")
    warning_s: float = Field(default=0.0, ge=0, description="Slurm: a SIGTERM so long before the end as well; 0: none")
    ask_s: float = Field(default=2.0, gt=0, le=10, description="seconds between two questions for work")
    quick_s: float = Field(default=5.0, gt=0, description="seconds between two looks while the queue changes")
    quiet_s: float = Field(default=40.0, gt=0, description="seconds between two looks while nothing changes")
    patience_s: float = Field(default=120.0, gt=0, description="longest pause while the system is silent")

    @field_validator("site")
    @classmethod
    def _name(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,28}[A-Za-z0-9])?", value):
            raise ValueError("use letters, digits and, inside, '.', '_' and '-'; at most 30")
        return value

    @property
    def job_name(self) -> str:
        """Name of all pilots of this site."""
        return f"fallow-{self.site}"


def read(file: Path | None, given: dict[str, object]) -> Settings:
    """Settings of the file, with `given` (dotted names such as place.partition) over them. Raises InvalidSettings."""
    content: dict[str, object] = {}
    if file is not None:
        try:
            content = yaml.safe_load(file.read_text()) or {}
        except (OSError, yaml.YAMLError) as error:
            raise InvalidSettings(f"{file}: {error}") from error
        if not isinstance(content, dict):
            raise InvalidSettings(f"{file}: must be a mapping of names to values")
    for name, value in given.items():
        _put(content, name.split("."), value)
    try:
        return Settings.model_validate(content)
    except ValidationError as error:
        raise InvalidSettings("\n".join(_problem(one) for one in error.errors())) from error


def _put(content: dict[str, object], path: list[str], value: object) -> None:
    for part in path[:-1]:
        inner = content.setdefault(part, {})
        if not isinstance(inner, dict):
            raise InvalidSettings(f"{part}: must be a mapping of names to values")
        content = inner
    content[path[-1]] = value


def _problem(error: object) -> str:
    assert isinstance(error, dict)
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] == "missing":
        return f"{where}: is missing; give it in the file or as --{where.rpartition('.')[2].replace('_', '-')}"
    return f"{where}: {error['msg']}"
