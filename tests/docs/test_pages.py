"""The documentation says what the code does: every command, key, code, metric, limit and package."""

from __future__ import annotations

import argparse
import configparser
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import attrs
import pytest

from bridged import telemetry
from bridged.config import TABLES, members
from bridged.config.tables import ConversationTable, Pkcs11, Via
from bridged.connectors import SERVICES
from bridged.ctl import output
from bridged.ctl.arguments import parser
from bridged.gateway import frames
from bridged.schema import ERROR_CODES, DeliveryState
from shards.broker.limits import Limits

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def page(name: str) -> str:
    return (DOCS / name).read_text()


def section(text: str, title: str) -> str:
    """What stands under a heading, up to the next of its rank or a higher one."""
    match = re.search(rf"^(#+) {re.escape(title)}$", text, re.MULTILINE)
    assert match is not None, f"no heading {title!r}"
    end = re.search(rf"^#{{1,{len(match[1])}}} ", text[match.end() :], re.MULTILINE)
    return text[match.end() : match.end() + end.start()] if end else text[match.end() :]


def rows(text: str) -> list[list[str]]:
    """The cells of a text's tables, without their heads."""
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        lines = [re.split(r"(?<!\\)\|", line.strip())[1:-1] for line in block.strip().splitlines()]
        found += [[cell.strip() for cell in line] for line in lines[2:]]
    return found


def bare(cell: str) -> str:
    return cell.strip("`").replace("\\|", "|")


# -- configuration ------------------------------------------------------------------------------------------------


def default(field: attrs.Attribute[Any]) -> str:
    value = field.default
    if value is attrs.NOTHING:
        return "required"
    if value is None or value == ():
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return str(list(value)).replace("'", '"')
    return f'"{value}"' if isinstance(value, str) else f"{value:g}"


def tables() -> Iterator[tuple[str, type]]:
    for key, kind in TABLES.items():
        yield f"`[{key}]`", kind
    yield "`[vault.pkcs11]`", Pkcs11
    yield "`[[conversation]]`", ConversationTable
    yield "a channel as a table", Via
    for service in SERVICES:
        settings = import_module(f"bridged.connectors.{service}.settings")
        yield f'`[[connector]]` with `service = "{service}"`', settings.Settings


@pytest.mark.parametrize(
    ("title", "kind"), list(tables()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_key_of_the_configuration_with_its_default(title: str, kind: type) -> None:
    text = section(page("configuration.md"), title).partition("\n### ")[0]
    written = [(bare(row[0]), bare(row[1])) for row in rows(text)]
    assert written == [(field.name, default(field)) for field in attrs.fields(kind)]
    assert all(row[2] for row in rows(text))


@pytest.mark.parametrize("service", ["irc", "xmpp"])
def test_every_key_of_a_tls_table(service: str) -> None:
    settings = import_module(f"bridged.connectors.{service}.settings")
    text = section(
        section(page("configuration.md"), f'`[[connector]]` with `service = "{service}"`'),
        "its `tls` as a table",
    )
    assert [bare(row[0]) for row in rows(text)] == [field.name for field in attrs.fields(settings.TlsFiles)]


# -- commands -----------------------------------------------------------------------------------------------------


def commands(top: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    below = [action for action in top._actions if isinstance(action, argparse._SubParsersAction)]
    if not below:
        yield top
    for action in below:
        for one in action.choices.values():
            yield from commands(one)


def words(command: argparse.ArgumentParser) -> str:
    """A command with its options, as a person writes it."""
    out = [command.prog.removeprefix("bridgectl ")]
    for action in command._actions:
        if action.dest in ("help", "json"):
            continue
        metavar = action.metavar or ("|".join(action.choices) if action.choices else action.dest.upper())
        if action.option_strings:
            word = action.option_strings[0] if action.nargs == 0 else f"{action.option_strings[0]} {metavar}"
            out.append(word if action.required else f"[{word}]")
        else:
            out.append({"+": f"{metavar}…", "?": f"[{metavar}]"}.get(str(action.nargs), str(metavar)))
    return " ".join(out)


def test_every_command_and_option_of_bridgectl() -> None:
    written = [bare(row[0]) for row in rows(section(page("operating.md"), "Commands"))]
    assert written == [words(command) for command in commands(parser())]
    for action in parser()._actions:
        if action.option_strings and action.dest != "help":
            assert f"`{action.option_strings[0]}" in page("operating.md"), action.option_strings


def test_every_command_has_help() -> None:
    for command in commands(parser()):
        assert command.description, command.prog


def test_every_exit_code() -> None:
    codes = {
        output.DONE,
        output.FAILED,
        output.USAGE,
        output.REFUSED,
        output.UNREACHABLE,
        output.STORAGE,
        output.CONFIG,
    }
    assert {int(row[0]) for row in rows(section(page("operating.md"), "Exit codes of `bridgectl`"))} == codes


def test_the_commands_that_the_pages_show_are_there() -> None:
    """Every `bridgectl …` line of every page parses."""
    shown = []
    for path in [ROOT / "README.md", *DOCS.rglob("*.md")]:
        for line in re.findall(r"^    bridgectl (.+)$", path.read_text(), re.MULTILINE):
            shown.append(line.partition("  ")[0].partition(" #")[0])
    assert len(shown) >= 8
    for line in shown:
        parser().parse_args(re.findall(r'"[^"]*"|\S+', line))  # raises CtlError


# -- metrics, codes, topics ---------------------------------------------------------------------------------------


def test_every_metric() -> None:
    written = {
        bare(row[0]): (row[1], row[2], row[3]) for row in rows(section(page("operating.md"), "Looking at it"))
    }
    assert set(written) == {metric.name for metric in telemetry.METRICS}
    for metric in telemetry.METRICS:
        labels = ", ".join(f"`{label}`" for label in metric.labels) or "-"
        assert written[metric.name] == (metric.kind, labels, metric.help)


def test_every_error_code() -> None:
    written = [bare(row[0]) for row in rows(section(page("gateway.md"), "Error codes"))]
    assert len(written) == len(set(written)) and set(written) == ERROR_CODES


def test_every_topic_action() -> None:
    text = section(page("operating.md"), "Topics")
    told = {bare(word) for word in re.findall(r"`[a-z_]+`", text)}
    assert told - {"replay"} == {*members.TOLD_BY_CONNECTORS, *members.TOLD_TO_CONNECTORS}


def test_every_op_event_status_and_close_code_of_the_gateway() -> None:
    text = page("gateway.md")
    assert {bare(row[0]) for row in rows(section(text, "Ops"))} == set(frames.OPS)
    assert {bare(row[0]) for row in rows(section(text, "Events"))} == set(frames.EVENTS)
    closes = {value for name, value in vars(frames).items() if name.startswith("CLOSE_")} - {
        frames.CLOSE_NORMAL
    }
    assert {int(row[0]) for row in rows(section(text, "Close codes"))} == closes | {1009}
    for state in DeliveryState:
        if state is not DeliveryState.ACCEPTED:
            assert f"`{state.value}`" in text


# -- limits and packages ------------------------------------------------------------------------------------------


def value_of(name: str) -> int | float:
    """`room.CONSTANT`, or `room.Class.attribute` of a default instance."""
    parts = name.split(".")
    at = next(n for n, part in enumerate(parts) if part[0].isupper())
    value: Any = getattr(import_module(".".join(parts[:at])), parts[at])
    for part in parts[at + 1 :]:
        value = getattr(value(), part)
    assert isinstance(value, int | float)
    return value


def test_every_limit_has_its_value() -> None:
    written = {bare(row[0]): row[1] for row in rows(page("limits.md"))}
    for name, shown in written.items():
        value = value_of(name)
        assert shown == (f"{value:,}" if isinstance(value, int) else f"{value:g}"), name
    for field in attrs.fields(Limits):
        assert f"shards.broker.limits.Limits.{field.name}" in written


def test_every_package_has_its_reason() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    for title, listed in (
        ("What runs", config["options"]["install_requires"]),
        ("What tests", config["options.extras_require"]["test"]),
    ):
        wanted = [re.split(r"[<>=!~;\[ ]", line)[0] for line in listed.split("\n") if line.strip()]
        found = rows(section(page("dependencies.md"), title))
        assert [row[0] for row in found] == wanted and all(row[1] for row in found)


def test_every_link_between_pages_leads_somewhere() -> None:
    broken = []
    for path in [ROOT / "README.md", *DOCS.rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text()):
            if "://" not in target and not (path.parent / target).exists():
                broken.append(f"{path.relative_to(ROOT)}: {target}")
    assert not broken


def test_decisions_are_numbered_without_a_gap_and_say_the_same_things() -> None:
    found = sorted((DOCS / "adr").glob("*.md"))
    assert [path.name[:4] for path in found] == [f"{n:04}" for n in range(1, len(found) + 1)] and found
    for path in found:
        text = path.read_text()
        assert text.startswith(f"# {int(path.name[:4])}. "), path.name
        for title in ("What was written", "What we do", "Why"):
            assert section(text, title).strip(), (path.name, title)
