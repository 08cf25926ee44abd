"""Whose tasks a client sees."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_bgtasks import StartRequest
from trio_bgtasks.mcp import chosen_owner, client_owner, principal_owner

_names = st.text(st.characters(exclude_categories=[]), max_size=300)
_paths = st.text(st.characters(exclude_characters="\0"), max_size=300).map(lambda text: f"/{text}")


def stdio(name: str | None) -> Any:
    """Return the context of a request of a client of this name; None: of one that does not say."""
    info = None if name is None else SimpleNamespace(client_info=SimpleNamespace(name=name))
    return SimpleNamespace(session=SimpleNamespace(client_params=info))


def http(principal: str | None) -> Any:
    """Return the context of a request with the token of a principal; None: without one."""
    token = SimpleNamespace(client_id=principal)
    user = None if principal is None else SimpleNamespace(access_token=token)
    return SimpleNamespace(request=SimpleNamespace(scope={"user": user}))


@given(st.lists(st.tuples(_names, _paths), min_size=2, max_size=2, unique=True))
def test_clients_are_told_apart(clients: list[tuple[str, str]]) -> None:
    """Two clients with another name or directory have two owners, which any store takes; the same client has the same one."""
    owners = [client_owner(Path(path))(stdio(name)) for name, path in clients]
    paths = [str(Path(path)) for _, path in clients]
    same = (clients[0][0], paths[0]) == (clients[1][0], paths[1])
    assert (owners[0] == owners[1]) == same
    for owner, (name, path) in zip(owners, clients, strict=True):
        assert StartRequest(owner_thread_id=owner, task_type="x")
        assert client_owner(Path(path))(stdio(name)) == owner


@given(st.lists(_names, min_size=2, max_size=2, unique=True))
def test_principals_are_told_apart(principals: list[str]) -> None:
    """Two principals have two owners, none of which a client of stdio or a visitor without a token has."""
    owners = {principal_owner(http(principal)) for principal in principals}
    owners |= {principal_owner(http(None)), client_owner(Path("/"))(stdio("http"))}
    assert len(owners) == 4
    assert all(StartRequest(owner_thread_id=owner, task_type="x") for owner in owners)


def test_readable() -> None:
    """An owner says who it is."""
    assert (
        client_owner(Path("/src/my app"))(stdio("claude-code"))
        == "mcp:stdio:claude-code:/src/my app"
    )
    assert client_owner(Path("/src"))(stdio(None)) == "mcp:stdio::/src"
    assert principal_owner(http("ann@home")) == "mcp:http:ann%40home"
    assert principal_owner(SimpleNamespace(request=None)) == "mcp:http"  # type: ignore[arg-type]
    assert chosen_owner("me")(stdio("you")) == "me"
    with pytest.raises(ValueError, match="owner cannot be empty"):
        chosen_owner("")
