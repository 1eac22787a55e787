"""Captum's generated tests, over this package's attributions: only while a file of this folder is imported."""

import pytest
from captum.testing.attr.helpers.test_config import config

from tests.third_party.captum.entries import ENTRIES


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report():
    theirs = list(config)
    config[:] = ENTRIES
    try:
        return (yield)
    finally:
        config[:] = theirs
