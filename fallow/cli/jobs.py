"""Commands about jobs."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fallow.cli import output
from fallow.cli.output import JsonFlag
from fallow.errors import FallowError

if TYPE_CHECKING:
    from fallow.client import Client
    from fallow.results import Job, Node

JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="A job's id, or its name if only one live job has it.")]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command()(submit)
    app.command()(run)
    app.command()(jobs)
    app.command()(status)
    app.command()(watch)
    app.command()(logs)
    app.command()(cancel)
    app.command()(why)


def client() -> Client:
    """A client for the current context."""
    from fallow.client import Client

    return Client()


def submit(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A job spec in YAML.")],
    check: Annotated[bool, typer.Option("--check", help="Only say if the spec is valid, and what it needs.")] = False,
    follow: Annotated[bool, typer.Option("--watch", "-w", help="Stay and show progress until the job ends.")] = False,
    request_id: Annotated[
        str | None, typer.Option(help="A second submit with the same id makes no second job.")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Submit a job."""
    if check:
        _check(file, json)
        return
    with client() as c:
        submitted = c.submit(file, request_id)
        if json:
            output.print_json(submitted)
        else:
            print(submitted.job)
            note = "was there already, from this request id" if submitted.existed else "is accepted"
            print(f"Job {submitted.job} {note}. Follow it with: fallow watch {submitted.job}", file=sys.stderr)
        if follow:
            raise typer.Exit(_watch(c, submitted.job, json))


def _check(file: Path, json: bool) -> None:
    from dataclasses import asdict

    from fallow.model_folders import fit, memory_need
    from fallow.specs import load_spec

    spec = load_spec(file)
    need = memory_need(spec.serve) if spec.serve is not None else None
    nodes = _live_nodes() if need is not None else None
    found = None if need is None or nodes is None else fit(spec, need, nodes)
    if json:
        memory = {"memory": asdict(need)} if need is not None else {}
        memory |= {"fit": asdict(found)} if found is not None else {}
        output.print_json({"valid": True, "spec": spec.model_dump(mode="json", exclude_none=True), **memory})
        return
    print(f"{file}: a valid {spec.kind} job of width {spec.min_width} to {spec.max_width}")
    for line in [*(need.lines() if need is not None else []), *(found.lines() if found is not None else [])]:
        print(line)


def _live_nodes() -> Sequence[Node] | None:
    """The nodes of the scheduler that the context names; None where none can be asked."""
    try:
        with client() as c:
            return c.nodes()
    except FallowError as error:
        print(f"Not compared with live nodes: {str(error).splitlines()[0]}", file=sys.stderr)
        return None


def run(
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND...", help="What to run on a borrowed node.")],
    folder: Annotated[Path, typer.Option("--output", "-o", help="Folder for results and logs.")] = Path("fallow-out"),
    name: Annotated[str | None, typer.Option(help="Name of the job.")] = None,
    times: Annotated[int, typer.Option(min=1, help="How often; {i} in the command stands for 0, 1, 2, ...")] = 1,
    width: Annotated[int, typer.Option(min=1, help="On how many workers at most.")] = 1,
    retries: Annotated[int, typer.Option(min=0, help="Tries again after a failure; reclaims never count.")] = 2,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Do not wait for the end.")] = False,
    json: JsonFlag = False,
) -> None:
    """Run a command on borrowed nodes; its output appears here."""
    with client() as c:
        array = [{"i": i} for i in range(times)]
        target = folder.absolute()
        submitted = c.run(command, array, output=target, name=name, width=(1, width), retries=retries)
        if detach:
            output.print_json(submitted) if json else print(submitted.job)
            return
        for line in c.logs(submitted.job, follow=True):
            print(line.line, file=sys.stderr if json else sys.stdout, flush=True)
        raise typer.Exit(_ending(c.wait(submitted.job), json))


def jobs(
    all: Annotated[bool, typer.Option("--all", "-a", help="Also jobs that have ended.")] = False,
    json: JsonFlag = False,
) -> None:
    """List jobs."""
    with client() as c:
        found = c.jobs(all=all)
    if json:
        output.print_json(found)
    elif found:
        output.jobs_table(found)
    else:
        print("No jobs." if all else "No live jobs; --all shows those that have ended.", file=sys.stderr)


def status(job: JobArgument, json: JsonFlag = False) -> None:
    """Show everything about a job."""
    with client() as c:
        found = c.job(job)
    output.print_json(found) if json else output.job_details(found)


def watch(job: JobArgument, json: JsonFlag = False) -> None:
    """Follow a job until it ends. Exits with 0 when it is done, 1 when it failed or was cancelled."""
    with client() as c:
        raise typer.Exit(_watch(c, job, json))


def logs(
    job: JobArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
    tail: Annotated[int, typer.Option("--tail", "-n", min=0, help="Only the last lines; 0: all.")] = 0,
    json: JsonFlag = False,
) -> None:
    """Show what a job's workers wrote."""
    with client() as c:
        for line in c.logs(job, follow=follow, tail=tail):
            if json:
                output.print_json(line)
            else:
                print(f"{output.clock_time(line.at_s)} {line.worker}  {line.line}", flush=True)


def cancel(
    job: JobArgument,
    wait: Annotated[bool, typer.Option(help="Wait until the job has ended.")] = False,
    json: JsonFlag = False,
) -> None:
    """End a job."""
    with client() as c:
        found = c.cancel(job)
        found = c.wait(found.id) if wait else found
    output.print_json(found) if json else print(f"{found.name} ({found.id}) is {found.state}")


def why(job: JobArgument, json: JsonFlag = False) -> None:
    """Say why a job does not run, or not at its full width, and what happened to it last."""
    with client() as c:
        found = c.why(job)
    output.print_json(found) if json else output.why_details(found)


def _watch(c: Client, job: str, json: bool) -> int:
    now = c.job(job)
    if not now.is_over:
        if json:
            for event in c.watch(now.id):
                output.print_json(event)
        elif sys.stdout.isatty():
            _show_bar(c, now)
        else:
            for event in c.watch(now.id):
                print(f"{output.clock_time(event.at_s)} {event.kind:16} {event.message}", flush=True)
    return _ending(c.job(now.id), json)


def _show_bar(c: Client, job: Job) -> None:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("[bold]{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"))
    with Progress(*columns, TimeElapsedColumn(), console=output.console()) as bar:
        shown = bar.add_task(job.name, total=job.total or None, completed=job.step, note=job.state)
        next_look_s = 0.0
        for event in c.watch(job.id):
            now = event.job
            note = f"{now.state}  {now.step}/{now.total or '?'}  width {now.width}"
            note += f"  loss {now.loss:.3f}" if now.loss else ""
            bar.update(shown, total=now.total or None, completed=now.step, note=note)
            if event.kind != "job_progressed" and time.monotonic() >= next_look_s:
                bar.console.print(f"[dim]{output.clock_time(event.at_s)}[/]  {event.message}", markup=True)


def _ending(job: Job, json: bool) -> int:
    if json:
        output.print_json(job)
    elif job.succeeded:
        print(f"{job.name} is done" + (f": {job.output}" if job.output else ""), file=sys.stderr)
    else:
        output.print_error(f"{job.name} ({job.id}) {job.state}: {job.message}", f"See `fallow logs {job.id}`.")
    return 0 if job.succeeded else 1
