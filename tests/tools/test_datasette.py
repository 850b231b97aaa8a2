"""Datasette shows the response cache: every page, in order, with the backend's name."""

from __future__ import annotations

import asyncio
import hashlib
import math

import pytest

from pointer_rl.session.cache import ResponseCache
from pointer_rl.types import Response, Usage

app = pytest.importorskip("datasette.app", reason="needs datasette: make test-tools")

NUMBERS = range(25)
KEYS = [hashlib.sha256(bytes([number])).digest() for number in NUMBERS]
RESPONSES = [
    Response(f"answer {number}", (-0.5, -math.inf), Usage(7, 2, 1)) for number in range(25)
]


@pytest.fixture
def get(tmp_path):
    path = tmp_path / "responses.sqlite"
    cache = ResponseCache(path)
    cache.put("vlm-3b", list(zip(KEYS, RESPONSES, strict=True)))
    cache.put("vlm-7b", [(b"half a surrogate pair", Response("\ud83d"))])

    def get(address):
        async def ask():
            # As the command does: the file is open for writing, too, and other processes may write.
            datasette = app.Datasette([str(path)])
            await datasette.invoke_startup()
            return await datasette.client.get(address)

        response = asyncio.run(ask())
        assert response.status_code == 200, response.text
        return response

    return get


def test_rows_are_as_they_were_put_page_by_page(get):
    rows, after = [], ""
    for _ in range(3):
        address = f"/responses/responses.json?_shape=objects&_size=10&backend=1&_next={after}"
        page = get(address).json()
        rows += page["rows"]
        after = page["next"]
    assert after is None
    assert [row["key"] for row in rows] == sorted(key.hex() for key in KEYS)
    put = {key.hex(): response for key, response in zip(KEYS, RESPONSES, strict=True)}
    for row in rows:
        response = put[row["key"]]
        assert row["text"] == response.text
        assert row["score_logprobs"] == "[-0.5, null]"
        usage = Usage(row["prompt_tokens"], row["generated_tokens"], row["images"])
        assert usage == response.usage


def test_pages_name_the_backend_and_show_text(get):
    page = get("/responses/responses").text
    assert "vlm-3b" in page
    assert "answer 12" in page
    assert "Binary" in page  # no text, of which UTF-8 has no form
    row = get(f"/responses/responses/{KEYS[12].hex()}").text
    assert "answer 12" in row


def test_facets_and_sql_count(get):
    facets = get("/responses/responses.json?_facet=backend").json()["facet_results"]
    counts = {each["label"]: each["count"] for each in facets["backend"]["results"]}
    assert counts == {"vlm-3b": 25, "vlm-7b": 1}
    found = get("/responses.json?sql=select count(*) as n from responses where images = 1").json()
    assert found["rows"] == [[25]]
