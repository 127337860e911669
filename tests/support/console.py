"""The console as a browser without script sees it: the pages there are, the tags of one, its forms and how they are sent."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any
from urllib.parse import urljoin

from django.contrib.admin.utils import quote
from django.db import transaction
from django.test import Client

from django_jobs.models import Batch, DeadLetter, GoneProcess, Job, Operation, Schedule, WorkerProcess

ROOT = "/admin/django_jobs/"
LISTS = (
    "overview",
    "job",
    "deadletter",
    "queue",
    "schedule",
    "workerprocess",
    "deadletter/causes",
    "job/_types",
    "overview/acts",
    "goneprocess",
    "batch",
    "alert",
    "operation",
)
TYPED = {"per_second": "1234.5", "priority": "9", "note": "seen"}  # what a person types into the empty fields
Attributes = dict[str, str | None]


class Markup(HTMLParser):
    """Notes each tag with its attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, Attributes]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def tags_of(page: str) -> list[tuple[str, Attributes]]:
    """Return the tags of a page."""
    parser = Markup()
    parser.feed(page)
    return parser.tags


def pages(rows: int = 4) -> Iterator[str]:
    """Yield the address of every page, each with the rows that are there; of each kind those of so many rows."""
    yield from (f"{ROOT}{name}/" for name in LISTS)
    yield f"{ROOT}deadletter/?state=all"
    yield f"{ROOT}deadletter/causes/?age=all"
    for job_type in Job.objects.order_by("-pk").values_list("job_type", flat=True)[:rows]:
        yield f"{ROOT}job/_types/{quote(job_type)}/"
    for fingerprint in DeadLetter.objects.exclude(fingerprint="").values_list("fingerprint", flat=True)[:rows]:
        yield f"{ROOT}deadletter/causes/{quote(fingerprint)}/"
    for model in (Job, DeadLetter, Schedule, Batch, WorkerProcess, GoneProcess, Operation):
        for row in model._default_manager.order_by("-pk")[:rows]:
            yield f"{ROOT}{model._meta.model_name}/{quote(row.pk)}/change/"
            yield f"{ROOT}{model._meta.model_name}/{quote(row.pk)}/history/"


@dataclass
class Form:
    """A form that is posted: its address, its fields, the choices of its action, and its buttons."""

    action: str
    fields: list[tuple[str, str]] = field(default_factory=list)
    actions: list[str] = field(default_factory=list)
    buttons: list[tuple[str, str]] = field(default_factory=list)

    @property
    def has_rows(self) -> bool:
        """Tell whether there is a row to choose."""
        return any(name == "_selected_action" for name, _value in self.fields)

    def ways(self) -> Iterator[dict[str, list[str]]]:
        """Yield what each button, or each choice of the action, sends; every row of a list is selected."""
        for name, value in self.buttons or [("", "")]:
            for action in self.actions or [""]:
                data: dict[str, list[str]] = {}
                for key, text in self.fields:
                    data.setdefault(key, []).append(text or TYPED.get(key, ""))
                yield data | ({name: [value]} if name else {}) | ({"action": [action]} if action else {})


class _Forms(HTMLParser):
    """Collects the forms of a page that are posted; a textarea's text is its value."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url
        self.found: list[Form] = []
        self.form: Form | None = None
        self.select = ""
        self.area: list[str] | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {key: value or "" for key, value in attrs}
        name, value, kind = given.get("name", ""), given.get("value", ""), given.get("type", "")
        if tag == "form" and given.get("method", "").lower() == "post":
            self.form = Form(urljoin(self.url, given.get("action") or self.url))
            self.found.append(self.form)
        elif self.form is None:
            return
        elif tag == "button" or (tag == "input" and kind == "submit"):
            if name:
                self.form.buttons.append((name, value))
        elif tag == "input" and name and (kind != "checkbox" or name == "_selected_action" or "checked" in given):
            self.form.fields.append((name, value))
        elif tag == "textarea":
            self.area = []
            self.form.fields.append((name, ""))
        elif tag == "select":
            self.select = name
        elif tag == "option" and self.select == "action" and value:
            self.form.actions.append(value)

    def handle_data(self, data: str) -> None:
        if self.area is not None:
            self.area.append(data)

    def handle_endtag(self, tag: str) -> None:
        if tag == "form":
            self.form = None
        elif tag == "select":
            self.select = ""
        elif tag == "textarea" and self.area is not None and self.form is not None:
            self.form.fields[-1] = (self.form.fields[-1][0], "".join(self.area).strip())
            self.area = None


def forms_of(text: str, url: str) -> list[Form]:
    """Return the forms of a page of ours that are posted to a page of ours."""
    parser = _Forms(url)
    parser.feed(text)
    found = [form for form in parser.found if form.action.startswith(ROOT) and "/change/" not in form.action]
    # The admin's frame of a list is a form, also where there is nothing to do; some themes offer actions on no row.
    return [form for form in found if (form.has_rows if form.actions else form.buttons or len(form.fields) > 1)]


def send_every_form(client: Client, url: str) -> int:
    """Send each form of a page in each way, confirm what asks for it, see that it did something; return how many were sent.

    Each is undone afterwards, so that the next one finds the same rows.
    """
    sent = 0
    for form in forms_of(client.get(url).text, url):
        for data in form.ways():
            with transaction.atomic():
                _send(client, form.action, data, came_from=url)
                transaction.set_rollback(True)
            sent += 1
    return sent


def _send(client: Client, action: str, data: dict[str, list[str]], came_from: str) -> Any:
    answer = client.post(action, data, follow=True)
    assert answer.status_code == 200, (came_from, action, data)
    confirmations = [form for form in forms_of(answer.text, action) if ("confirmed", "1") in form.fields]
    if confirmations and "confirmed" not in data:
        (way,) = confirmations[0].ways()
        return _send(client, confirmations[0].action, way, came_from)
    messages = [(message.level_tag, str(message)) for message in answer.context["messages"]]
    assert [text for tag, text in messages if tag == "success"], (came_from, action, data, messages)
    assert not [text for tag, text in messages if tag == "error"], (came_from, action, data, messages)
    return answer
