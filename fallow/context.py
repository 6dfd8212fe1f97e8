"""Where the scheduler is and who we are: arguments, then the environment, then what `fallow up` wrote."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from fallow.errors import UsageError

HOME_VARIABLE = "FALLOW_HOME"
ADDRESS_VARIABLE = "FALLOW_ADDRESS"
TOKEN_VARIABLE = "FALLOW_TOKEN"
TLS_CA_VARIABLE = "FALLOW_TLS_CA"


def home_dir() -> Path:
    """Folder of a user's contexts and local clusters: FALLOW_HOME, else ~/.fallow."""
    return Path(os.environ.get(HOME_VARIABLE) or Path.home() / ".fallow").expanduser().absolute()


@dataclass(frozen=True, slots=True)
class Context:
    """A scheduler and the right to talk to it. `tls_ca`: file with the authority of its certificate, or empty."""

    address: str
    token: str = field(default="", repr=False)
    page: str = ""
    tls_ca: str = ""

    def write(self, home: Path) -> None:
        """Make this the context of `home`, readable by its owner alone."""
        home.mkdir(parents=True, exist_ok=True)
        partial = home / "context.json.partial"
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(asdict(self), file, indent=1)
        partial.replace(home / "context.json")


def read_context(home: Path) -> Context | None:
    """The context that `fallow up` wrote there. Raises `UsageError` when the file cannot be understood."""
    path = home / "context.json"
    try:
        raw = json.loads(path.read_text())
        return Context(raw["address"], raw.get("token", ""), raw.get("page", ""), raw.get("tls_ca", ""))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} cannot be read as a context: {error}.", "Delete it and run `fallow up`.") from error


def resolve_context(address: str | None = None, token: str | None = None) -> Context:
    """The context to use. A saved token goes to the address that it was saved with, and to no other.

    Raises `UsageError` when nothing says where the scheduler is.
    """
    saved = read_context(home_dir())
    where = address or os.environ.get(ADDRESS_VARIABLE) or (saved.address if saved else "")
    if not where:
        raise UsageError(
            "No scheduler is known.", "Run `fallow up`, or set FALLOW_ADDRESS=HOST:PORT and FALLOW_TOKEN=TOKEN."
        )
    ours = saved if saved and saved.address == where else Context(where)
    return Context(
        address=where,
        token=token or os.environ.get(TOKEN_VARIABLE) or ours.token,
        page=ours.page,
        tls_ca=os.environ.get(TLS_CA_VARIABLE) or ours.tls_ca,
    )
