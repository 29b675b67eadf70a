"""The connectors' pages name what there is: every setting, every extension, every fault."""

from __future__ import annotations

import inspect
import re
import tomllib
from importlib import import_module
from pathlib import Path

import attrs
import pytest

from bridged.connectors import SERVICES, Capabilities, ConnectorState
from bridged.peers.irc import Faults as IrcFaults
from bridged.peers.xmpp import Faults as XmppFaults

PAGES = Path(__file__).parents[2] / "docs" / "connectors"
SECTIONS = ("Seen on a real server's wire", "After the specification only")


def page(name: str) -> str:
    return (PAGES / f"{name}.md").read_text(encoding="utf-8")


def section(name: str, heading: str) -> str:
    """The text under a heading, up to the next of its height."""
    found = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", page(name), re.MULTILINE | re.DOTALL)
    assert found is not None, f"{name}.md has no section {heading!r}"
    return found[1]


def settings_of(service: str) -> type:
    found = import_module(f"bridged.connectors.{service}.settings").Settings
    assert isinstance(found, type)
    return found


def capabilities_of(service: str) -> Capabilities:
    room = import_module(f"bridged.connectors.{service}.connector")
    found = getattr(room, "CAPABILITIES", None)
    if found is None:
        found = getattr(room, f"{service.capitalize()}Connector").capabilities
    assert isinstance(found, Capabilities)
    return found


def example_of(service: str) -> dict[str, object]:
    """The page's first `[[connector]]` table."""
    found = re.search(r"^```toml\n(.*?)^```", page(service), re.MULTILINE | re.DOTALL)
    assert found is not None, f"{service}.md has no example"
    (table,) = tomllib.loads(found[1])["connector"]
    assert isinstance(table, dict)
    return table


@pytest.mark.parametrize("service", SERVICES)
def test_every_setting_is_in_the_table_and_no_other(service: str) -> None:
    rows = set(re.findall(r"^\| `(\w+)` \|", page(service).split("\n## ")[0], re.MULTILINE))
    assert rows == {field.name for field in attrs.fields(settings_of(service))}


@pytest.mark.parametrize("service", SERVICES)
def test_the_table_tells_which_settings_are_required(service: str) -> None:
    for field in attrs.fields(settings_of(service)):
        row = re.search(rf"^\| `{field.name}` \| required \|", page(service), re.MULTILINE)
        assert (row is not None) == (field.default is attrs.NOTHING), field.name


@pytest.mark.parametrize("service", SERVICES)
def test_the_table_tells_each_default(service: str) -> None:
    for field in attrs.fields(settings_of(service)):
        if field.default is attrs.NOTHING or field.default is None:
            continue
        found = re.search(rf"^\| `{field.name}` \| (\S[^|]*) \|", page(service), re.MULTILINE)
        assert found is not None, field.name
        told = found[1].strip("`")
        default = field.default
        shown = "[]" if default == () else tomllib.loads(f"x = {told}")["x"]
        assert shown == ("[]" if default == () else default), field.name


@pytest.mark.parametrize("service", SERVICES)
def test_the_example_is_a_table_that_is_accepted(service: str) -> None:
    made = settings_of(service)(**example_of(service))
    assert made.service == service


@pytest.mark.parametrize("service", SERVICES)
def test_every_extension_is_named(service: str) -> None:
    words = set(re.findall(r"[\w/+-]+", page(service)))
    assert set(capabilities_of(service).extensions) - words == set()


@pytest.mark.parametrize("service", ["irc", "xmpp"])
def test_every_state_that_an_operator_meets_is_named(service: str) -> None:
    told = section(service, "States, and what to do")
    passing = {ConnectorState.STARTING}
    assert [
        state.value for state in ConnectorState if f"`{state.value}`" not in told and state not in passing
    ] == []


@pytest.mark.parametrize(
    ("heading", "panel"),
    [("Faults of the IRC network", IrcFaults), ("Faults of the XMPP server", XmppFaults)],
)
def test_every_fault_is_named_and_no_other(heading: str, panel: type) -> None:
    told = set(re.findall(r"`(\w+)\(", section("peers", heading)))
    there = {name for name, _ in inspect.getmembers(panel, inspect.isfunction) if not name.startswith("_")}
    assert told == there


@pytest.mark.parametrize("name", [*SERVICES, "peers"])
def test_every_page_says_what_was_seen_and_what_was_only_read(name: str) -> None:
    for heading in SECTIONS:
        assert section(name, heading).strip()


@pytest.mark.parametrize("name", [*SERVICES, "peers"])
def test_links_and_named_paths_are_there(name: str) -> None:
    text = page(name)
    for link in re.findall(r"\]\((?!http|#)([^)#]+)", text):
        assert (PAGES / link).exists(), link
    for path in re.findall(r"`(tests/[\w./*-]+)`", text):
        assert list(PAGES.parents[1].glob(path)), path
