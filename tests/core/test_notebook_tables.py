"""Reports in a notebook: tables whose texts are no markup, without secrets, of bounded size."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any, TypeVar

from mor_client.objective_calls import AnchorShare, ClientFit
from mor_core.clients import ClientStatus, Enrolled
from mor_core.notebook_tables import NotebookTable
from mor_core.runs import RunSnapshot

M = TypeVar("M", bound=NotebookTable)

HOSTILE = "<script>alert('x')</script>\"><img src=x onerror=alert(1)>"


class Page(HTMLParser):
    def __init__(self, shown: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(shown)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.open.append(tag)
        assert not any(name.startswith("on") for name, _ in attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


class Inner(NotebookTable):
    name: str
    by_domain: dict[str, float]


class Outer(NotebookTable):
    text: str
    unknown: float | None
    rows: tuple[Inner, ...]
    others: dict[str, str]
    nested: tuple[object, ...] = (((((((((1,),),),),),),),),)
    empty: tuple[Inner, ...] = ()


def example_of(kind: type[M]) -> M:
    extra: Any = kind.model_config["json_schema_extra"]
    return kind.model_validate(extra["examples"][0])


def test_texts_of_clients_and_models_are_no_markup() -> None:
    report = Outer(
        text=HOSTILE,
        unknown=None,
        rows=(Inner(name=HOSTILE, by_domain={HOSTILE: 0.123456789}),),
        others={HOSTILE: HOSTILE},
    )
    page = Page(report._repr_html_())
    assert set(page.tags) <= {"table", "caption", "tr", "th", "td"} and not page.open
    assert page.texts.count(HOSTILE) == 5 and "0.123457" in page.texts


def test_long_reports_are_cut() -> None:
    rows = tuple(Inner(name="x" * 10_000, by_domain={}) for _ in range(1000))
    shown = Outer(text="", unknown=1.0, rows=rows, others={str(n): "" for n in range(1000)})._repr_html_()
    assert len(shown) < 100_000 and shown.count("and 950 more") == 2


def test_reports_of_services_are_tables_without_tokens() -> None:
    client = example_of(ClientStatus).client
    enrolled = Enrolled(client=client, token="a-secret-token", trial="scored")
    assert "a-secret-token" not in enrolled._repr_html_() + repr(enrolled)
    assert client.name in enrolled._repr_html_()
    snapshot = example_of(RunSnapshot).model_copy(update={"updated_at": 1767225600.0})
    assert "2026-01-01 00:00:00+00:00" in Page(snapshot._repr_html_()).texts
    fit = ClientFit(
        client="clinic", accuracy=AnchorShare(value=0.5, low=0.4, high=0.6, of=24), weight_by_domain={"a": 1}
    )
    assert {"ClientFit", "clinic", "0.5", "24"} <= set(Page(fit._repr_html_()).texts)
