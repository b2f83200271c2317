"""The bench of all forms: what it sends is what a client would send, and its table says what did not run."""

from __future__ import annotations

import json
import random

from benchmarks.forms import BESIDE, ROWS, our_forms, table
from benchmarks.stored import STORED


def test_every_form_is_a_request_of_its_own_and_has_something_beside_it() -> None:
    forms = our_forms('W/"x"', random.Random(0))
    assert forms.keys() | STORED.keys() == BESIDE.keys()
    assert len({form.request() for form in forms.values()}) == len(forms)
    for name, form in forms.items():
        head, _, body = form.request().partition(b"\r\n\r\n")
        assert (b"Content-Length: %d" % len(body) in head) == bool(body), name
        assert form.rows in (1, ROWS)
    length = int(forms["/v2, binary"].headers[0].partition(": ")[2])
    assert json.loads(forms["/v2, binary"].body[:length])["inputs"][0]["parameters"]["binary_data_size"] == 32


def test_the_table_has_ratios_and_reasons() -> None:
    rates = {"GET": [90.0, 110.0], "nginx, GET": [100.0], "HEAD": [60.0], "GET, own client": [50.0]}
    text = table(rates, {"Triton": "no wheel for it"})
    assert "| **ours, GET**" in text
    assert "1.00" in text
    assert "1.20" in text, "HEAD beside the GET of the same client"
    assert text.count("not run: no wheel for it") == 2
