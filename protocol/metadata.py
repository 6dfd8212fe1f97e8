"""Names of the gRPC metadata that travels beside the messages."""

from __future__ import annotations

TOKEN_KEY = "authorization"
"""Sent with every call: `Bearer <token>`."""

REASON_KEY = "fallow-reason-bin"
"""Sent back with every refusal: a serialised `fallow.v1.Reason`, whose message and remedy are also the status text."""
