"""Tensors and content codings, without a server: what is read, and that whatever is wrong is refused."""

from __future__ import annotations

import gzip
import json
import struct
import time
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import CODINGS, InvalidInput, MalformedRequest, NotSupported, PayloadTooLarge, ServiceError
from service.http.coding import decode, encode, negotiate
from service.openinference.tensors import DTYPES, Inference, read_inference

MAX_ROWS = 256
INPUT: dict[str, Any] = {"name": "x", "datatype": "FP32", "shape": [2, 2], "data": [1, 2, 3, 4]}


def request(*inputs: Any, **members: Any) -> bytes:
    return json.dumps({"inputs": list(inputs), **members}).encode()


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in INPUT.items() if key != name}


def binary(document: bytes, *blobs: bytes) -> tuple[bytes, bytes]:
    return document + b"".join(blobs), str(len(document)).encode()


def sized(size: Any, **members: Any) -> dict[str, Any]:
    return without("data") | {"parameters": {"binary_data_size": size}} | members


@pytest.mark.parametrize("data", [[1, 2, 3, 4], [[1, 2], [3, 4]], [1.0, 2, 3, 4.0]])
def test_data_are_flat_or_nested_as_the_shape_says(data: list[Any]) -> None:
    (tensor,) = read_inference(request(INPUT | {"data": data}), None).inputs
    assert isinstance(tensor.values, np.ndarray)
    assert (tensor.values.dtype, tensor.values.tolist()) == (np.float32, [[1, 2], [3, 4]])


@pytest.mark.parametrize("datatype", DTYPES)
def test_each_datatype_means_the_same_numbers_in_json_and_in_binary(datatype: str) -> None:
    values = np.array([[0, 1], [2, 100]], DTYPES[datatype])
    (read,) = read_inference(request(INPUT | {"datatype": datatype, "data": values.ravel().tolist()}), None).inputs
    body, length = binary(request(sized(values.nbytes, datatype=datatype)), values.tobytes())
    (sent,) = read_inference(body, length).inputs
    assert isinstance(read.values, np.ndarray)
    assert isinstance(sent.values, np.ndarray)
    assert read.values.dtype == sent.values.dtype == values.dtype
    assert read.values.tolist() == sent.values.tolist() == values.tolist()


def test_bf16_is_the_upper_half_of_a_float32() -> None:
    raw = struct.pack("<4f", 1.0, -2.0, 0.5, 3.0)
    halves = b"".join(raw[i + 2 : i + 4] for i in range(0, 16, 4))
    (tensor,) = read_inference(*binary(request(sized(8, datatype="BF16")), halves)).inputs
    assert isinstance(tensor.values, np.ndarray)
    assert tensor.values.tolist() == [[1.0, -2.0], [0.5, 3.0]]


def test_binary_strings_may_hold_any_bytes_and_several_inputs_follow_each_other() -> None:
    strings = struct.pack("<I", 3) + b"\x00\xff\x00" + struct.pack("<I", 0)
    document = request(sized(len(strings), datatype="BYTES", shape=[2], name="a"), INPUT, sized(16, name="b"), id="7")
    inference = read_inference(*binary(document, strings, np.arange(4, dtype="<f4").tobytes()))
    assert inference.id == "7"
    assert [tensor.name for tensor in inference.inputs] == ["a", "x", "b"]
    assert inference.inputs[0].values == [b"\x00\xff\x00", b""]
    assert isinstance(inference.inputs[2].values, np.ndarray)
    assert inference.inputs[2].values.tolist() == [[0, 1], [2, 3]]


def test_null_for_an_optional_member_means_that_it_is_absent() -> None:
    """As KServe's SDK sends it."""
    parameters = {"binary_data_output": None, "shared_memory_region": None}
    outputs = [{"name": "label", "parameters": None}, {"name": "x", "parameters": {"binary_data": None}}]
    plain = [{"name": "label"}, {"name": "x", "parameters": {"classification": None}}]
    null = request(INPUT | {"parameters": {"binary_data_size": None}}, id=None, parameters=parameters, outputs=outputs)
    assert same(read_inference(null, None), read_inference(request(INPUT, outputs=plain), None))
    nothing = request(INPUT | {"parameters": None}, id=None, parameters=None, outputs=None)
    assert same(read_inference(nothing, None), read_inference(request(INPUT), None))
    in_binary = read_inference(*binary(request(sized(16) | {"data": None}), bytes(16)))
    assert same(in_binary, read_inference(*binary(request(sized(16)), bytes(16))))


def same(left: Inference, right: Inference) -> bool:
    """Arrays have no equality of their own."""
    return repr(left) == repr(right)


def test_unknown_members_and_parameters_are_accepted() -> None:
    document = request(INPUT | {"new": 1, "parameters": {"a": None}}, new={}, parameters={"priority": 1}, outputs=[])
    assert read_inference(document, None).outputs is None
    inputs = {"binary_data": "x", "binary_data_output": "x", "classification": "x"}
    outputs = [{"name": "a", "parameters": {"binary_data_size": "x", "binary_data_output": "x"}}]
    whole = {"binary_data": "x", "binary_data_size": "x", "classification": "x"}
    read_inference(request(INPUT | {"parameters": inputs}, outputs=outputs, parameters=whole), None)


DEEP = b'{"inputs":' + b"[" * 50_000 + b"]" * 50_000 + b"}"
BAD = {
    "empty": b"",
    "not json": b"{",
    "not utf-8": b'{"inputs":[{"name":"\xff"}]}',
    "not an object": b"[]",
    "deep json": DEEP,
    "deep data": request(INPUT | {"data": json.loads("[" * 500 + "]" * 500)}),
    "no inputs": b"{}",
    "zero inputs": request(),
    "inputs not an array": b'{"inputs":{}}',
    "an input that is no object": request(1),
    "too many inputs": request(*[INPUT] * 1025),
    "input twice": request(INPUT, INPUT),
    "output twice": request(INPUT, outputs=[{"name": "a"}, {"name": "a"}]),
    "output without name": request(INPUT, outputs=[{}]),
    "outputs not an array": request(INPUT, outputs={}),
    "no name": request(without("name")),
    "name not a string": request(INPUT | {"name": 1}),
    "no shape": request(without("shape")),
    "empty shape": request(INPUT | {"shape": []}),
    "negative dimension": request(INPUT | {"shape": [-1, 2]}),
    "two negative dimensions": request(INPUT | {"shape": [-2, -2]}),
    "zero dimension": request(INPUT | {"shape": [2, 0], "data": []}),
    "fractional dimension": request(INPUT | {"shape": [2.0, 2]}),
    "true as dimension": request(INPUT | {"shape": [True, 4]}),
    "text as dimension": request(INPUT | {"shape": ["2", 2]}),
    "null shape": request(INPUT | {"shape": None}),
    "size overflow to zero": request(INPUT | {"shape": [2, 2**63, 2**63, 4]}),
    "dimension beyond 64 bits": request(INPUT | {"shape": [1, 2**64]}),
    "a thousand dimensions": request(INPUT | {"shape": [1] * 1000}),
    "huge shape, no data": request(INPUT | {"shape": [256, 2**40], "data": []}),
    "too many rows": request(INPUT | {"shape": [MAX_ROWS + 1, 1], "data": [0] * (MAX_ROWS + 1)}),
    "too little data": request(INPUT | {"data": [1, 2, 3]}),
    "too much data": request(INPUT | {"data": [1, 2, 3, 4, 5]}),
    "ragged data": request(INPUT | {"data": [[1, 2, 3], [4]]}),
    "half nested data": request(INPUT | {"data": [[1, 2], 3, 4]}),
    "nested deeper than the shape": request(INPUT | {"data": [[[1], [2]], [[3], [4]]]}),
    "data not an array": request(INPUT | {"data": 1}),
    "neither data nor size": request(without("data")),
    "null data": request(INPUT | {"data": None}),
    "text as number": request(INPUT | {"data": [1, 2, 3, "4"]}),
    "true as number": request(INPUT | {"data": [1, 2, 3, True]}),
    "null as integer": request(INPUT | {"datatype": "INT32", "data": [1, 2, 3, None]}),
    "fraction as integer": request(INPUT | {"datatype": "INT32", "data": [1, 2, 3, 4.5]}),
    "beyond INT8": request(INPUT | {"datatype": "INT8", "data": [1, 2, 3, 128]}),
    "negative UINT8": request(INPUT | {"datatype": "UINT8", "data": [1, 2, 3, -1]}),
    "number as BYTES": request(INPUT | {"datatype": "BYTES"}),
    "unknown datatype": request(INPUT | {"datatype": "FP128"}),
    "lower-case datatype": request(INPUT | {"datatype": "fp32"}),
    "BF16 in json": request(INPUT | {"datatype": "BF16"}),
    "id not a string": request(INPUT, id=1),
    "parameters not an object": request(INPUT, parameters=[]),
    "binary_data not a bool": request(INPUT, outputs=[{"name": "a", "parameters": {"binary_data": 1}}]),
    "binary_data_output not a bool": request(INPUT, parameters={"binary_data_output": "yes"}),
    "negative classification": request(INPUT, outputs=[{"name": "a", "parameters": {"classification": -1}}]),
    "binary size without binary": request(sized(16)),
    "binary size and data": request(INPUT | {"parameters": {"binary_data_size": 16}}),
    "text as binary size": request(sized("16")),
    "bytes after the json": request(INPUT) + b"\0",
}


@pytest.mark.parametrize("body", BAD.values(), ids=BAD)
def test_what_is_no_request_is_refused(body: bytes) -> None:
    with pytest.raises(MalformedRequest):
        read_inference(body, None, MAX_ROWS)


@pytest.mark.parametrize("padding", [b"", b'"more": "%b", ' % (b"x" * 2**20)], ids=["small", "large"])
def test_refusals_do_not_speak_python(padding: bytes) -> None:
    told = {
        request(): "inputs: There must be at least 1.",
        request(1): "inputs.0: It must be an object.",
        request(*[INPUT] * 1025): "inputs: There may be at most 1024.",
        request(INPUT, outputs=[{"name": "a"}] * 1025): "outputs: There may be at most 1024.",
    }
    for body, sentence in told.items():
        with pytest.raises(MalformedRequest) as refused:
            read_inference(body[:1] + padding + body[1:], None, MAX_ROWS)
        assert str(refused.value) == sentence


FOUR = np.zeros(4, "<f4").tobytes()
BAD_BINARY = {
    "size too small for the shape": binary(request(sized(12)), FOUR[:12]),
    "size beyond the body": binary(request(sized(17)), FOUR),
    "negative size": binary(request(sized(-1)), FOUR),
    "enormous size": binary(request(sized(2**63)), FOUR),
    "bytes that belong to nobody": binary(request(sized(16)), FOUR, b"\0"),
    "sizes that add up to more than the body": binary(request(sized(16), sized(16, name="y")), FOUR),
    "all of the body twice": binary(request(sized(16, shape=[4]), sized(16, name="y")), FOUR, FOUR[:15]),
    "a string beyond its tensor": binary(request(sized(8, datatype="BYTES", shape=[1])), b"\xff\0\0\0abcd"),
    "half a length": binary(request(sized(3, datatype="BYTES", shape=[1])), b"\0\0\0"),
    "more strings than rows": binary(request(sized(4 * 257, datatype="BYTES", shape=[1, 257])), bytes(4 * 257)),
    "fewer strings": binary(request(sized(4, datatype="BYTES", shape=[2])), b"\0\0\0\0"),
    "more strings": binary(request(sized(8, datatype="BYTES", shape=[1])), b"\0" * 8),
    "a strings' shape beyond memory": binary(request(sized(4, datatype="BYTES", shape=[1, 2**62])), b"\0" * 4),
    "unknown datatype": binary(request(sized(16, datatype="X")), FOUR),
    "header longer than the body": (request(INPUT), b"100000"),
    "header within the json": (request(INPUT), b"10"),
    "negative header": (request(INPUT), b"-1"),
    "header zero": (request(INPUT), b"0"),
    "header no number": (request(INPUT), b"abc"),
    "header beyond 64 bits": (request(INPUT), b"9" * 30),
    "header of other digits": (request(INPUT), "٥".encode()),
    "two headers": (request(INPUT), b"10, 10"),
}


@pytest.mark.parametrize(("body", "length"), BAD_BINARY.values(), ids=BAD_BINARY)
def test_binary_tensors_that_do_not_add_up_are_refused(body: bytes, length: bytes) -> None:
    with pytest.raises(MalformedRequest):
        read_inference(body, length, MAX_ROWS)


def test_shared_memory_is_not_supported() -> None:
    region = {"parameters": {"shared_memory_region": "a", "shared_memory_byte_size": 16}}
    for document in (request(without("data") | region), request(INPUT, outputs=[{"name": "x"} | region])):
        with pytest.raises(NotSupported):
            read_inference(document, None)


def test_refusing_a_request_takes_no_memory() -> None:
    tracemalloc.start()
    try:
        for name, body in BAD.items():
            tracemalloc.reset_peak()
            before, _ = tracemalloc.get_traced_memory()
            with pytest.raises(MalformedRequest):
                read_inference(body, None, MAX_ROWS)
            assert tracemalloc.get_traced_memory()[1] - before < 100_000 + 100 * len(body), name
    finally:
        tracemalloc.stop()


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
_datatypes = st.sampled_from([*DTYPES, "BF16", "BYTES", "BOOL", ""]) | _json
_parameters = st.fixed_dictionaries({}, optional={"binary_data_size": st.integers(0, 20) | _json}) | _json
_inputs = st.fixed_dictionaries(
    {},
    optional={
        "name": st.text(max_size=3) | _json,
        "datatype": _datatypes,
        "shape": st.lists(st.integers(-1, 3), max_size=3) | _json,
        "data": st.lists(st.integers(-1, 300) | st.floats() | st.text(max_size=2), max_size=9) | _json,
        "parameters": _parameters,
    },
)
_documents = st.fixed_dictionaries({"inputs": st.lists(_inputs, max_size=3)}, optional={"outputs": _json, "id": _json})


@given(document=_documents, tail=st.binary(max_size=24), shift=st.integers(-3, 3))
def test_any_request_is_read_or_refused(document: Any, tail: bytes, shift: int) -> None:
    head = json.dumps(document).encode()
    length = None if not tail else str(len(head) + (shift if shift == 3 else 0)).encode()
    try:
        inference = read_inference(head + tail, length)
    except ServiceError as error:
        assert isinstance(error, MalformedRequest | NotSupported)
    else:
        for tensor in inference.inputs:
            count = len(tensor.values) if isinstance(tensor.values, list) else tensor.values.size
            assert count == int(np.prod(tensor.shape))


@pytest.mark.parametrize("coding", CODINGS)
def test_an_encoded_body_is_decoded_and_has_always_the_same_bytes(coding: str) -> None:
    body = bytes(range(256)) * 100
    assert decode(encode(body, coding), coding, len(body)) == body
    assert encode(body, coding) == encode(body, coding)


@pytest.mark.parametrize("coding", CODINGS)
def test_a_bomb_is_refused_before_it_is_decoded(coding: str) -> None:
    bomb = encode(bytes(50 * 2**20), coding)
    tracemalloc.start()
    try:
        with pytest.raises(PayloadTooLarge):
            decode(bomb, coding, 32 * 2**20)
        assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
    finally:
        tracemalloc.stop()


GZIPPED = gzip.compress(b"hello", mtime=0)


@pytest.mark.parametrize(
    ("body", "coding"),
    [
        (b"", "gzip"),
        (b"hello", "gzip"),
        (GZIPPED[:-1], "gzip"),
        (GZIPPED + b"x", "gzip"),
        (GZIPPED + bytes(2**20), "gzip"),
        (GZIPPED, "deflate"),
        (zlib.compress(b"hello"), "gzip"),
        (zlib.compress(b"hello")[:-1], "deflate"),
        (zlib.compress(b"hello")[2:-5], "deflate"),
    ],
)
def test_a_body_that_is_not_in_its_coding_is_refused(body: bytes, coding: str) -> None:
    with pytest.raises(InvalidInput):
        decode(body, coding, 1000)


@pytest.mark.parametrize(
    ("accepted", "coding"),
    [
        ("", None),
        ("identity", None),
        ("br", None),
        ("gzip", "gzip"),
        ("GZip", "gzip"),
        ("x-gzip", "gzip"),
        ("deflate", "deflate"),
        ("gzip, deflate, br", "gzip"),
        ("gzip;q=0.5, deflate", "deflate"),
        ("gzip;q=0", None),
        ("gzip;q=0, deflate;q=0.1", "deflate"),
        ("*", "gzip"),
        ("*;q=0", None),
        ("gzip;q=0.5, identity", None),
        ("gzip, identity;q=0.5", "gzip"),
    ],
)
def test_the_coding_is_the_one_that_the_client_prefers(accepted: str, coding: str | None) -> None:
    assert negotiate(accepted.encode()) == coding


@pytest.mark.parametrize("accepted", ["!" + " " * 30_000 + "!", "a" * 30_000 + "!", "gzip;" + " " * 30_000 + "!"])
def test_a_long_offer_of_codings_is_read_in_the_time_of_a_short_one(accepted: str) -> None:
    started = time.process_time()
    assert negotiate(accepted.encode()) is None
    assert time.process_time() - started < 0.5
