"""Captum's generated tests, over this package's attributions: the configuration is theirs again once all is collected."""

from captum.testing.attr.helpers.test_config import config

from tests.third_party.captum.entries import ENTRIES

_THEIRS = list(config)
config[:] = ENTRIES


def pytest_collection_finish(session):
    config[:] = _THEIRS
