"""`fallow.Client`: submit jobs and follow them from Python."""

from __future__ import annotations

import base64
import inspect
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from google.protobuf.message import Message

from fallow import results, wire
from fallow.context import Context, resolve_context
from fallow.errors import FallowError, Unreachable, UsageError
from fallow.rpc import CALL_TIMEOUT_S, answered, credentials, open_channel, streamed
from fallow.session import ElasticSession
from fallow.specs import SpecLike, load_spec
from protocol import client_pb2 as pb
from protocol.client_pb2_grpc import FallowServiceStub
from protocol.jobspec import Scalar

T = TypeVar("T")

_RETRY_PAUSE_S = 0.5
_SUBMIT_ATTEMPTS = 4


class Client:
    """A connection to a scheduler. Safe to share between threads; close it, or use it in a `with`.

    Every method raises `Unreachable` when the scheduler does not answer and `RefusedError` when it says no.
    """

    def __init__(self, address: str | None = None, token: str | None = None, *, context: Context | None = None) -> None:
        """`address` is HOST:PORT. What is left out comes from FALLOW_ADDRESS and FALLOW_TOKEN, else from the
        context that `fallow up` wrote under FALLOW_HOME. Raises `UsageError` when nothing says where to go."""
        self.context = context or resolve_context(address, token)
        self._channel = open_channel(self.context)
        self._stub = FallowServiceStub(self._channel)
        self._metadata = credentials(self.context)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connection."""
        self._channel.close()

    # --- jobs --------------------------------------------------------------------------------------------------

    def submit(self, spec: SpecLike, request_id: str | None = None) -> results.Submitted:
        """Submit a job: a spec, a mapping with its fields, or the path of a YAML file.

        Relative paths in a file are taken from the file's folder, others from the current one. The submit is
        durable when this returns. It carries a request id, so neither our own retries nor a second call with the
        same `request_id` submit twice. Raises `InvalidSpec` as well.
        """
        spec_json = load_spec(spec).model_dump_json(exclude_none=True)
        request = pb.SubmitRequest(spec_json=spec_json, request_id=request_id or uuid.uuid4().hex)
        for attempt in range(1, _SUBMIT_ATTEMPTS + 1):
            try:
                response = self._call(self._stub.Submit, request)
                break
            except Unreachable:
                if attempt == _SUBMIT_ATTEMPTS:
                    raise
                time.sleep(_RETRY_PAUSE_S * attempt)
        return results.Submitted(response.job, response.existed)

    def run(
        self,
        work: Callable[..., Any] | Sequence[str] | str,
        array: Sequence[Mapping[str, Scalar]] = ({},),
        *,
        output: str | Path,
        name: str | None = None,
        width: tuple[int, int] = (1, 1),
        retries: int = 2,
        timeout_s: float | None = None,
        request_id: str | None = None,
    ) -> results.Submitted:
        """Run a function, or a command, once for each item of `array`, on between width[0] and width[1] workers.

        A function is called with the item's fields as keyword arguments. In a command, given as a list of words,
        `{field}` stands for the item's field; a string is "module:function", importable on the nodes. Results and
        logs go to the folder `output`. Losses by reclaim never count as `retries`.
        """
        task: dict[str, Any] = {"array": [dict(item) for item in array], "retries": retries, "output": str(output)}
        task |= {} if timeout_s is None else {"timeout_s": float(timeout_s)}
        task |= _what_to_run(work)
        spec = {
            "kind": "task",
            "name": name or _task_name(work),
            "width": {"min": width[0], "max": width[1]},
            "task": task,
        }
        return self.submit(spec, request_id)

    def train(
        self,
        function: Callable[[ElasticSession], None] | str,
        *,
        steps: int,
        global_batch: int,
        output: str | Path,
        name: str | None = None,
        width: tuple[int, int] = (1, 1),
        request_id: str | None = None,
        **more: Any,
    ) -> results.Submitted:
        """Train a model of your own on between width[0] and width[1] workers, which may come and go.

        `function` takes a `fallow.ElasticSession`. It is sent with the job, and so is what it uses of the module that
        it is defined in; a string is "module:function", importable on the nodes. `more` are fields of a train job's
        spec, such as seed, optimizer, snapshot_every and checkpoint_every. The trained model goes to `output`.
        """
        part = {"steps": steps, "global_batch": global_batch, "output": str(output), **more}
        part |= {"function": function} if isinstance(function, str) else {"pickled": _pickled_with_module(function)}
        spec = {
            "kind": "train",
            "name": name or _task_name(function),
            "width": {"min": width[0], "max": width[1]},
            "train": part,
        }
        return self.submit(spec, request_id)

    def job(self, job: str) -> results.Job:
        """The job with this id, or the only live one with this name."""
        return wire.job(self._call(self._stub.GetJob, pb.JobRequest(job=job)))

    def jobs(self, all: bool = False) -> tuple[results.Job, ...]:
        """Live jobs, oldest first; with `all`, also those that have ended."""
        return tuple(wire.job(j) for j in self._call(self._stub.ListJobs, pb.ListJobsRequest(all=all)).jobs)

    def watch(self, job: str, reconnect_s: float = 120.0) -> Iterator[results.JobEvent]:
        """What happens to the job, from now on until it has ended.

        When the scheduler goes away, tries again for `reconnect_s` seconds before it raises `Unreachable`; no
        event is given twice.
        """
        newest, give_up_s = -1, time.monotonic() + reconnect_s
        while True:
            try:
                for event in self._watch_once(job):
                    give_up_s = time.monotonic() + reconnect_s
                    if event.sequence > newest:
                        newest = event.sequence
                        yield event
                    if event.job.is_over:
                        return
                if self.job(job).is_over:
                    return
            except Unreachable:
                if time.monotonic() > give_up_s:
                    raise
            time.sleep(_RETRY_PAUSE_S)

    def wait(self, job: str, timeout_s: float | None = None) -> results.Job:
        """The job once it has ended. Raises TimeoutError when it has not within `timeout_s`."""
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            try:
                now = self.job(job)
            except Unreachable:
                if deadline_s is None:
                    raise
                now = None
            if now is not None and now.is_over:
                return now
            if deadline_s is not None and time.monotonic() > deadline_s:
                raise TimeoutError(f"job {job} has not ended within {timeout_s:g} s")
            time.sleep(_RETRY_PAUSE_S)

    def logs(self, job: str, follow: bool = False, tail: int = 0) -> Iterator[results.LogLine]:
        """Lines that the job's workers wrote, oldest first; the last `tail` of them, 0 for all. With `follow`, go
        on until the job has ended."""
        stream = self._stub.JobLogs(pb.LogsRequest(job=job, follow=follow, tail=tail), metadata=self._metadata)
        return (wire.log_line(line) for line in streamed(self.context, stream))

    def cancel(self, job: str) -> results.Job:
        """End the job. It ends in its own time: use `wait`."""
        return wire.job(self._call(self._stub.CancelJob, pb.JobRequest(job=job)))

    def why(self, job: str) -> results.Why:
        """Why the job does not run, or not at its full width, and what happened to it last."""
        return wire.why(self._call(self._stub.Why, pb.JobRequest(job=job)))

    # --- nodes and books ---------------------------------------------------------------------------------------

    def nodes(self, site: str = "") -> tuple[results.Node, ...]:
        """Nodes of a site, or of all."""
        return tuple(wire.node(n) for n in self._call(self._stub.ListNodes, pb.ListNodesRequest(site=site)).nodes)

    def drain(self, node: str = "", site: str = "", grace_s: float = 60.0, cause: str = "") -> tuple[str, ...]:
        """Move work off a node, or off all nodes of a site, within `grace_s`; the nodes that are drained now."""
        request = pb.DrainRequest(node=node, site=site, grace_s=grace_s, cause=cause)
        return tuple(self._call(self._stub.Drain, request).nodes)

    def usage(self, by: str = "job") -> results.Usage:
        """What became of all borrowed time, by "job", "node", "site" or "user"."""
        return wire.usage(self._call(self._stub.Usage, pb.UsageRequest(by=by)))

    # --- tokens ------------------------------------------------------------------------------------------------

    def create_token(self, name: str, role: str, valid_s: float = 0.0) -> str:
        """A new token's secret, shown this once. Roles: admin, user, agent, site, viewer. 0 s: until revoked."""
        return self._call(self._stub.CreateToken, pb.CreateTokenRequest(name=name, role=role, valid_s=valid_s)).token

    def tokens(self) -> tuple[results.Token, ...]:
        """Names and roles of all tokens that are valid."""
        return tuple(wire.token(t) for t in self._call(self._stub.ListTokens, pb.ListTokensRequest()).tokens)

    def revoke_token(self, name: str) -> None:
        """Make a token useless from now on."""
        self._call(self._stub.RevokeToken, pb.RevokeTokenRequest(name=name))

    # ------------------------------------------------------------------------------------------------------------

    def _call(self, method: Callable[..., T], request: Message) -> T:
        return answered(self.context, lambda: method(request, timeout=CALL_TIMEOUT_S, metadata=self._metadata))

    def _watch_once(self, job: str) -> Iterator[results.JobEvent]:
        stream = self._stub.WatchJob(pb.JobRequest(job=job), metadata=self._metadata)
        return (wire.job_event(event) for event in streamed(self.context, stream))


def _what_to_run(work: Callable[..., Any] | Sequence[str] | str) -> dict[str, Any]:
    if isinstance(work, str):
        return {"function": work}
    if not callable(work):
        return {"command": list(work)}
    if inspect.iscoroutinefunction(work):
        raise UsageError(f"{work.__name__} is a coroutine function.", "Give a plain function.")
    return {"pickled": _pickled(work)}


def _pickled(work: Callable[..., Any]) -> str:
    import cloudpickle

    try:
        pickled = cloudpickle.dumps(work)
    except Exception as error:
        raise FallowError(
            f"{work!r} cannot be sent to the nodes: {error}.", "Let it not hold files, locks or sockets."
        ) from error
    return base64.b64encode(pickled).decode()


def _pickled_with_module(work: Callable[..., Any]) -> str:
    """Its own module goes along, as the nodes need not have it."""
    import cloudpickle

    module = sys.modules.get(work.__module__)
    if module is None or module.__name__ == "__main__":
        return _pickled(work)
    cloudpickle.register_pickle_by_value(module)
    try:
        return _pickled(work)
    finally:
        cloudpickle.unregister_pickle_by_value(module)


def _task_name(work: Callable[..., Any] | Sequence[str] | str) -> str:
    word = (
        work if isinstance(work, str) else getattr(work, "__name__", "task") if callable(work) else Path(work[0]).name
    )
    plain = "".join(c if c.isascii() and c.isalnum() else "-" for c in word.lower()).strip("-")
    return plain[:60].strip("-") or "task"
