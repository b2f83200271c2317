"""What an image's upload is told for next time."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from tests.support.server import Server

pytestmark = pytest.mark.contract


@pytest.mark.parametrize("top_k", [None, "5", "2", "all"])
@pytest.mark.parametrize("method", ["POST", "QUERY"])
def test_content_location_has_the_same_answer_without_an_upload(
    images: Server, picture: Path, method: str, top_k: str | None
) -> None:
    params = {"model": "digits"} | ({} if top_k is None else {"top_k": top_k})
    headers = {"Content-Type": "image/png"}
    with httpx.Client(base_url=images.url, timeout=60) as client:
        answer = client.request(method, "/predict", params=params, content=picture.read_bytes(), headers=headers)
        located = client.get(answer.headers["content-location"])
    assert (answer.status_code, located.status_code) == (200, 200)
    assert located.content == answer.content
    assert located.headers["cache-status"].startswith("predict; hit")
    assert ("top_k" in answer.headers["content-location"]) == (top_k in ("2", "all"))
