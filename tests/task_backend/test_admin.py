"""A task in the console: its function, and its arguments for those who may see payloads."""

import pytest

from tests.support.effects import tasks
from tests.support.staff import browse, staff

pytestmark = pytest.mark.django_db


def test_a_tasks_job_shows_its_function_and_its_arguments_to_those_who_may_see_them() -> None:
    result = tasks.describe.enqueue("ada-lovelace", password="geheim", plain="<b>charged</b>")
    url = f"/admin/django_jobs/job/{result.id}/change/"
    blind = browse(staff(name="blind")).get(url).text
    seeing = browse(staff("view_payload", name="seeing")).get(url).text
    for page in (blind, seeing):
        assert "tests.support.effects.tasks.describe" in page
        assert "geheim" not in page
        assert "<b>charged</b>" not in page
    assert "ada-lovelace" not in blind
    assert "ada-lovelace" in seeing
