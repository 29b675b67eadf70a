"""Formatted text: what is written is safe, what is read is never lost, and nothing raises."""

from __future__ import annotations

import re
import time
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridged.richtext import (
    Code,
    Link,
    Mention,
    Node,
    Pre,
    Quote,
    Styled,
    Text,
    from_html,
    from_styling,
    plain,
    safe_html,
    to_html,
    to_styling,
)


@pytest.mark.parametrize(
    ("raw", "nodes"),
    [
        ("", ()),
        ("hi", (Text("hi"),)),
        ("a &lt;b&gt; &amp; c", (Text("a <b> & c"),)),
        ("<b>a</b> <i>b</i>", (Styled("bold", (Text("a"),)), Text(" "), Styled("italic", (Text("b"),)))),
        ("<b><i>x</b>y", (Styled("bold", (Styled("italic", (Text("x"),)),)), Text("y"))),
        ("<b>open", (Styled("bold", (Text("open"),)),)),
        ("a</b>b", (Text("ab"),)),
        ("a<br>b<br/>c", (Text("a\nb\nc"),)),
        ("<p>a</p>\n<p>b</p>", (Text("a\nb"),)),
        ("a  \n b", (Text("a b"),)),
        ("<code>x  &lt; <b>y</b></code>", (Code("x  < y"),)),
        ("<pre><code>a\n  b</code></pre>", (Pre("a\n  b"),)),
        ('<a href="https://x.org/?a=1&amp;b">x</a>', (Link("https://x.org/?a=1&b", (Text("x"),)),)),
        ('<a href="javascript:alert(1)">x</a>', (Text("x"),)),
        ('<a href=" java\tscript:x">x</a>', (Text("x"),)),
        ('<a href="//evil">x</a>', (Text("x"),)),
        ("<a>x</a>", (Text("x"),)),
        ('<a href="msgr://identity/msgr/ola">Ola</a>', (Mention("msgr://identity/msgr/ola", "Ola"),)),
        ("a<blockquote>b<br>c</blockquote>d", (Text("a"), Quote((Text("b\nc"),)), Text("d"))),
        ("<ul><li>a</li><li>b</li></ul>c", (Text("• a\n• b\nc"),)),
        ("<ol><li>a<li>b</ol>", (Text("1. a\n2. b"),)),
        ("<h1>T</h1>x", (Styled("bold", (Text("T"),)), Text("\nx"))),
        ("<table><tr><td>a</td><td>b</td></tr></table>", (Text("a b"),)),
        ("a<!-- secret -->b", (Text("ab"),)),
        ("a<!-- open", (Text("a<!-- open"),)),
        ("1 < 2 <3 <", (Text("1 < 2 <3 <"),)),
        ("<script>alert(1)</script>", (Text("alert(1)"),)),
        ('<img src="x" alt="a cat">', (Text("a cat"),)),
        ("<font color='red'>x</font>", (Text("x"),)),
        ("<![CDATA[x]]>", (Text("<![CDATA[x]]>"),)),
        ("<u>a</u><del>b</del>", (Styled("underline", (Text("a"),)), Styled("strike", (Text("b"),)))),
    ],
)  # fmt: skip
def test_html_is_read(raw: str, nodes: tuple[Node, ...]) -> None:
    assert from_html(raw) == nodes


def test_html_is_written_safe() -> None:
    assert safe_html('<b onclick="x">a</b><script>1</script>') == "<strong>a</strong>1"
    assert safe_html('<a href="https://x/&quot;onx=" title="y">&lt;</a>') == "&lt;"
    assert safe_html('<a href="https://x/">&lt;</a>') == '<a href="https://x/">&lt;</a>'
    assert safe_html("a\x00\x0b\ufffe") == "a\ufffd\ufffd\ufffd"
    assert to_html([Text("a\n<"), Pre("\nx"), Code("&"), Mention("msgr://identity/msgr/o", "<o>")]) == (
        'a<br/>&lt;<pre>\n\nx</pre><code>&amp;</code><a href="msgr://identity/msgr/o">&lt;o&gt;</a>'
    )


# XEP-0393, sections 5 and 6, in our own words.
@pytest.mark.parametrize(
    ("raw", "nodes"),
    [
        ("*strong* _em_ ~gone~ `code`", (
            Styled("bold", (Text("strong"),)), Text(" "), Styled("italic", (Text("em"),)), Text(" "),
            Styled("strike", (Text("gone"),)), Text(" "), Code("code"),
        )),
        ("*a*b*", (Styled("bold", (Text("a"),)), Text("b*"))),
        ("**", (Text("**"),)),
        ("***", (Text("***"),)),
        ("****", (Text("****"),)),
        ("* not*", (Text("* not*"),)),
        ("*not *", (Text("*not *"),)),
        ("a*not*", (Text("a*not*"),)),
        ("*not\nover lines*", (Text("*not\nover lines*"),)),
        ("*_both_*", (Styled("bold", (Styled("italic", (Text("both"),)),)),)),
        ("`*raw*`", (Code("*raw*"),)),
        ("> quoted\n> more\nreply", (Quote((Text("quoted\nmore"),)), Text("reply"))),
        (">>twice", (Quote((Quote((Text("twice"),)),)),)),
        ("```\n*raw*\n  x\n```\nafter", (Pre("*raw*\n  x"), Text("after"))),
        ("```python\nx", (Pre("python\nx"),)),
        ("> ```\n> code\nout", (Quote((Pre("code"),)), Text("out"))),
        ("a\n\nb", (Text("a\n\nb"),)),
    ],
)  # fmt: skip
def test_styling_is_read(raw: str, nodes: tuple[Node, ...]) -> None:
    assert from_styling(raw) == nodes


@pytest.mark.parametrize(
    "raw",
    [
        "*a* _b_ ~c~ `d` *_e_*",
        "> a\n> > b\n\nc",
        "> a\n\n> b",
        "a\n\n> b",
        "```\ncode\n  more\n```\nx",
        "> ```\n> code\n> ```",
        "a\n\nb\n",
        "x * y * z",
    ],
)
def test_styling_comes_back(raw: str) -> None:
    assert to_styling(from_styling(raw)) == raw


def test_html_becomes_styling_and_plain_text() -> None:
    nodes = from_html(
        '<p><b>Hi</b> <a href="https://x.org">here</a>, <u>now</u></p><blockquote>old</blockquote>'
        "<pre>a\nb</pre><b>two<br>lines</b> "
        '<a href="https://y.org">https://y.org</a>'
    )
    assert to_styling(nodes) == (
        "*Hi* here (https://x.org), now\n> old\n```\na\nb\n```\n*two*\n*lines* https://y.org"
    )
    assert plain(nodes) == "Hi here (https://x.org), now\n> old\na\nb\ntwo\nlines https://y.org"
    assert plain([Link("mailto:a@b", (Text("a@b"),)), Link("https://z", (Text(" "),))]) == "a@bhttps://z"


@pytest.mark.parametrize(
    "raw",
    [
        "<b>" * 20_000,
        "<blockquote>" * 20_000 + "x",
        "<" * 30_000,
        "<a '" * 20_000,
        "<!--" * 20_000,
        "&" * 200_000,
        "<a href='" + "x=" * 50_000,
        " *a" * 30_000,
        "*_~`" * 20_000,
        ">" * 100_000,
        "> " * 20_000,
        "```\n" * 20_000,
    ],
)
def test_hostile_texts_cost_no_time(raw: str) -> None:
    start = time.perf_counter()
    assert safe_html(raw) is not None
    assert to_styling(from_styling(raw)) is not None
    assert time.perf_counter() - start < 1


texts = st.text(max_size=12)
inline = st.recursive(
    st.builds(Text, texts)
    | st.builds(Code, texts)
    | st.builds(Mention, st.just("msgr://identity/msgr/o"), texts),
    lambda inner: (
        st.builds(
            Styled,
            st.sampled_from(["bold", "italic", "underline", "strike"]),
            st.lists(inner, max_size=3).map(tuple),
        )
        | st.builds(
            Link, st.sampled_from(["https://x/", "mailto:a@b"]), st.lists(inner, max_size=3).map(tuple)
        )
    ),
    max_leaves=8,
)
trees = st.recursive(
    st.lists(inline | st.builds(Pre, texts), max_size=4).map(tuple),
    lambda inner: st.lists(inline | st.builds(Quote, inner), max_size=4).map(tuple),
    max_leaves=6,
)
markup = st.lists(
    st.sampled_from(
        ["<b>", "</b>", "<i>", "</i>", "<p>", "</p>", "<br>", "<pre>", "</pre>", "<code>", "</code>", "<blockquote>",
         "</blockquote>", "<ul>", "<ol>", "<li>", "</ul>", "</ol>", "<h2>", "</h2>", "<a href='https://x/'>", "</a>",
         "<!-- c -->", "<td>", "x", " ", "\n", "y z", "&amp;", "&lt;", "<", ">", "'", '"', "<img alt='q'>", "\x01"]
    ),
    max_size=20,
).map("".join)  # fmt: skip


def letters(text: str) -> str:
    return "".join(re.findall(r"\w", text))


@given(trees)
def test_every_tree_becomes_well_formed_xml_with_all_its_text(tree: tuple[Node, ...]) -> None:
    written = to_html(tree)
    element = ElementTree.fromstring(f"<body>{written}</body>")
    allowed = {"body", "strong", "em", "u", "del", "code", "pre", "a", "blockquote", "br"}
    assert {inner.tag for inner in element.iter()} <= allowed
    assert all(set(inner.attrib) <= {"href"} for inner in element.iter())
    assert letters("".join(element.itertext())) == letters(_text_of(tree))


def _text_of(tree: tuple[Node, ...]) -> str:
    parts = []
    for node in tree:
        match node:
            case Text(text) | Code(text) | Pre(text):
                parts.append(text)
            case Mention(_, name):
                parts.append(name)
            case Styled(_, children) | Link(_, children) | Quote(children):
                parts.append(_text_of(children))
    return "".join(parts)


@given(trees)
def test_no_writer_drops_a_letter(tree: tuple[Node, ...]) -> None:
    without_links = tuple(node for node in tree if "Link" not in repr(node))
    assert letters(plain(without_links)) == letters(_text_of(without_links))
    assert letters(to_styling(without_links)).replace("_", "") == letters(_text_of(without_links)).replace(
        "_", ""
    )


@given(markup | st.text())
def test_making_html_safe_twice_changes_nothing_more(raw: str) -> None:
    once = safe_html(raw)
    assert safe_html(once) == once
    ElementTree.fromstring(f"<body>{once}</body>")


@given(st.text() | st.text(alphabet="*_~`> \na\\"))
def test_reading_styling_keeps_every_letter(raw: str) -> None:
    nodes = from_styling(raw)
    assert letters(plain(nodes)).replace("_", "") == letters(raw).replace("_", "")
    assert from_styling(to_styling(nodes)) is not None
