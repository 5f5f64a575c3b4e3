"""Secrets stay out of what is printed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_orch.cli.redact import redact, redact_text, shown


@pytest.mark.parametrize(
    "text, clean",
    [
        ("postgresql://user:pw@host:5432/db", "postgresql://user:***@host:5432/db"),
        ("postgresql+psycopg://user:p/w@d@host/db", "postgresql+psycopg://user:***@host/db"),  # scan: allow (made up)
        ("http://:pw@h/", "http://:***@h/"),
        ("postgresql://h/db?user=u&password=pw&sslmode=require", "postgresql://h/db?user=u&password=***&sslmode=require"),
        ("cannot reach postgresql://u:pw@h/db: refused", "cannot reach postgresql://u:***@h/db: refused"),  # scan: allow
        ("http://127.0.0.1:8080/v1", "http://127.0.0.1:8080/v1"),
        ("sqlite:////data/journal.db", "sqlite:////data/journal.db"),
    ],
)  # fmt: skip
def test_passwords_of_urls_are_hidden_and_the_rest_stays(text, clean):
    assert redact_text(text) == clean


def test_values_under_secret_names_are_hidden_at_any_depth():
    value = {"options": {"api_key": "x", "n_key": 3, "max_tokens": 5, "list": [{"auth.token": "y"}]}, "password": ""}
    assert redact(value) == {
        "options": {"api_key": "***", "n_key": "***", "max_tokens": 5, "list": [{"auth.token": "***"}]},
        "password": "",
    }


@given(
    st.text(alphabet=st.characters(categories=["L", "N", "P", "S"]), min_size=6, max_size=20).filter(
        lambda s: "canary" not in s and "@" not in s
    )
)
def test_no_password_of_a_database_url_survives(password):
    secret = f"canary{password}"
    assert secret not in shown("journal.url", f"postgresql://user:{secret}@host/db")
