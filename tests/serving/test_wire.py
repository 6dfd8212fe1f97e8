"""Frames and expert calls: whole again however they were cut, bounded, and closed to strangers."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from runtime.serving import wire
from runtime.serving.expert_calls import ExpertCall, Views, decode_call, decode_reply, encode_call, raw
from runtime.serving.wire import Frame, FrameReader, Kind, WireError

frames = st.builds(Frame, st.sampled_from(Kind), st.integers(0, 2**64 - 1), st.binary(max_size=300))


class Trickle:
    """A non-blocking socket that gives its bytes in pieces, with nothing to read in between."""

    def __init__(self, data: bytes, cuts: list[int]) -> None:
        edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
        self.pieces = [data[a:b] for a, b in pairwise(edges)]
        self.pause = False

    def recvmsg_into(self, into: list[memoryview], ancillary: int, flags: int) -> tuple[int, list[bytes], int, None]:
        self.pause = not self.pause
        if self.pause:
            raise BlockingIOError
        if not self.pieces:
            return 0, [], 0, None
        room = sum(map(len, into))
        piece, rest = self.pieces[0][:room], self.pieces[0][room:]
        self.pieces[:1] = [rest] if rest else []
        given = memoryview(piece)
        for view in into:
            view[: len(given)], given = given[: len(view)], given[len(view) :]
        return len(piece), [], 0, None


@given(st.lists(frames, max_size=5), st.lists(st.integers(0, 5000), max_size=20), st.booleans())
def test_frames_are_whole_again_however_they_arrive(sent: list[Frame], cuts: list[int], reuses: bool) -> None:
    sock = Trickle(b"".join(wire.encode(f.kind, f.call, bytes(f.body)) for f in sent), cuts)
    reader, got = FrameReader(reuses=reuses), []
    while len(got) < len(sent):
        frame = reader.read(sock)  # type: ignore[arg-type]
        if frame is not None:
            got.append(Frame(frame.kind, frame.call, bytes(frame.body)))
    assert got == sent


@given(
    st.lists(frames, max_size=5),
    st.lists(st.integers(0, 5000), max_size=20),
    st.lists(st.tuples(st.sampled_from(["right", "wrong call", "wrong length", "none"]), st.booleans()), min_size=5),
)
def test_a_reply_lies_in_its_place_and_anything_else_elsewhere(
    sent: list[Frame], cuts: list[int], wishes: list[tuple[str, bool]]
) -> None:
    sock = Trickle(b"".join(wire.encode(f.kind, f.call, bytes(f.body)) for f in sent), cuts)
    reader = FrameReader(reuses=True)
    for frame, (wish, diverts) in zip(sent, wishes, strict=False):
        place = memoryview(bytearray(len(frame.body) + (wish == "wrong length")))
        given, got = (frame.call ^ (wish == "wrong call"), place), None
        while got is None:
            got = reader.read(sock, None if wish == "none" else given)  # type: ignore[arg-type]
            if got is None and diverts:
                reader.divert(place)
                wish = "none"
        assert (got.kind, got.call, bytes(got.body)) == (frame.kind, frame.call, frame.body)
        assert (got.body is place) == (wish == "right" and frame.kind is Kind.REPLY)


@given(st.binary(min_size=16, max_size=16))
def test_a_header_is_understood_or_refused(data: bytes) -> None:
    try:
        kind, length, call = wire.parse_header(data, limit=1000)
    except WireError:
        return
    assert length <= 1000
    assert wire.header(kind, call, length) == data


def test_oversized_frames_are_refused_by_both_sides() -> None:
    with pytest.raises(WireError, match="limit"):
        wire.header(Kind.CALL, 1, wire.MAX_BODY_BYTES + 1)
    with pytest.raises(WireError, match="announced"):
        wire.parse_header(wire.HEADER.pack(b"FW", 1, Kind.CALL, 301, 1), limit=300)


def _meet(server_secret: bytes, client_secret: bytes) -> tuple[Exception | None, Exception | None]:
    """What server and client think of each other."""
    listener = socket.create_server(("127.0.0.1", 0))
    faults: list[Exception | None] = [None, None]

    def serve() -> None:
        sock, _ = listener.accept()
        try:
            wire.welcome(sock, server_secret)
        except OSError as error:
            faults[0] = error
        sock.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        wire.connect(listener.getsockname(), client_secret).close()
    except OSError as error:
        faults[1] = error
    thread.join()
    listener.close()
    return faults[0], faults[1]


def test_the_right_secret_opens_and_a_wrong_one_does_not() -> None:
    assert _meet(b"secret", b"secret") == (None, None)
    server, client = _meet(b"secret", b"guess")
    assert isinstance(server, WireError)
    assert client is not None


@st.composite
def expert_calls(draw: st.DrawFn) -> ExpertCall:
    tokens, width, listed = draw(st.integers(1, 6)), draw(st.integers(1, 5)), draw(st.booleans())
    pairs = draw(st.integers(1, 9)) if listed else tokens
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    rows = draw(st.lists(st.integers(0, tokens - 1), min_size=pairs, max_size=pairs))
    counts = Counter(draw(st.lists(st.integers(0, 300), min_size=pairs, max_size=pairs)))
    x_TD = torch.arange(tokens * width).view(tokens, width).to(dtype)
    row_P = np.array(rows, np.uint32) if listed else None
    return ExpertCall(draw(st.integers(0, 99)), x_TD, sorted(counts), [counts[e] for e in sorted(counts)], row_P)


@given(expert_calls())
def test_expert_calls_travel_unchanged(call: ExpertCall) -> None:
    got = decode_call(bytearray(b"".join(encode_call(call))))
    assert got.layer == call.layer
    assert got.x_TD.dtype == call.x_TD.dtype
    assert torch.equal(got.x_TD, call.x_TD)
    assert torch.equal(got.rows(), call.rows())
    assert (got.experts, got.counts) == (call.experts, call.counts)


@given(st.lists(st.tuples(expert_calls(), st.booleans()), max_size=6))
def test_calls_that_come_in_the_same_memory_are_read_as_if_each_had_its_own(
    calls: list[tuple[ExpertCall, bool]],
) -> None:
    views, room = Views(), bytearray(4096)
    for call, grows in calls:
        body = b"".join(encode_call(call))
        room = bytearray(len(room) + 1) if grows else room
        room[: len(body)] = body
        got = decode_call(memoryview(room)[: len(body)], views)
        assert got.x_TD.dtype == call.x_TD.dtype
        assert torch.equal(got.rows(), call.rows())


def test_views_of_calls_are_not_kept_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.serving.expert_calls.MOST_VIEWS", 3)
    views, room = Views(), bytearray(4096)
    made = [views.rows(room, torch.float32, rows, 2, 0) for rows in range(1, 8)]
    assert views.rows(room, torch.float32, 7, 2, 0) is made[6]
    assert views.rows(room, torch.float32, 1, 2, 0) is not made[0]


@given(expert_calls(), st.integers(0, 200), st.integers(0, 255), st.integers(0, 40))
def test_damaged_expert_calls_are_refused_or_harmless(call: ExpertCall, at: int, value: int, cut: int) -> None:
    body = bytearray(b"".join(encode_call(call)))
    body[at % len(body)] = value
    del body[len(body) - cut :]
    try:
        got = decode_call(body)
    except WireError:
        return
    assert len(got.rows()) == sum(got.counts)  # every index is in range


def test_replies_of_another_size_are_refused() -> None:
    body = bytearray(raw(torch.ones(3, 4)))
    assert torch.equal(decode_reply(body, torch.float32, 3, 4), torch.ones(3, 4))
    with pytest.raises(WireError):
        decode_reply(body, torch.float32, 5, 4)
    with pytest.raises(WireError):
        decode_reply(body[:-1], torch.float32, 3, 4)
