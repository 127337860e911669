"""Keep the default run short: tests marked `quick(...)` run there on the databases named, elsewhere with `-m fault`."""

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "quick(*names): in the default run on these databases, elsewhere a fault test")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        quick = item.get_closest_marker("quick")
        callspec = getattr(item, "callspec", None)
        if quick and callspec and callspec.params.get("database") not in quick.args:
            item.add_marker(pytest.mark.fault)
