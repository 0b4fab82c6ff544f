"""What an S3 server may answer, without a server: each answer becomes a fact or a sentence."""

import io
import sys

import pytest

from dto_pipeline.data import object_store
from dto_pipeline.data.object_store import FsspecStore, S3Store
from dto_pipeline.data.storage import StoreError
from dto_pipeline.data.store import open_store
from tests.s3_server import ENVIRONMENT

ROOT = "s3://bucket/runs/a%20b?region=us-east-1"
KEY = {"Bucket": "bucket", "Key": "runs/a b/labels/x"}


@pytest.fixture
def stubbed(monkeypatch):
    """A store whose client is asked what the test prepared, in order."""
    pytest.importorskip("boto3", reason="pip install 'dto-pipeline[s3]'")
    from botocore.stub import Stubber

    for key, value in ENVIRONMENT.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(object_store, "_PAUSE_S", 0.001)
    store = S3Store(ROOT)
    with Stubber(store._client) as stub:
        yield store, stub
        stub.assert_no_pending_responses()


@pytest.mark.parametrize(
    ("code", "status", "advice"),
    [
        ("AccessDenied", 403, "GetObject, PutObject, DeleteObject and ListBucket"),
        ("403", 403, "access is denied"),
        ("NoSuchBucket", 404, "the bucket does not exist; make it"),
        ("InvalidAccessKeyId", 403, "check AWS_ACCESS_KEY_ID"),
        ("SignatureDoesNotMatch", 403, "check AWS_SECRET_ACCESS_KEY"),
        ("ExpiredToken", 400, "renew the credentials"),
        ("SomethingNew", 418, "the server says .*SomethingNew"),
    ],
)
def test_an_error_names_bucket_key_and_next_step(stubbed, code, status, advice):
    store, stub = stubbed
    stub.add_client_error("get_object", code, "no", status, expected_params=KEY)

    with pytest.raises(StoreError, match=f"^bucket bucket, key runs/a b/labels/x: .*{advice}"):
        store.read("labels/x")


def test_an_object_that_is_not_there_is_a_missing_file(stubbed):
    store, stub = stubbed
    stub.add_client_error("get_object", "NoSuchKey", "no", 404)
    stub.add_client_error("head_object", "404", "no", 404)

    for ask in (store.read, store.size):
        with pytest.raises(FileNotFoundError, match="s3://bucket/runs/a b/labels/x"):
            ask("labels/x")


def _answer(told: int) -> dict:
    """Four bytes of an object that is said to have `told`."""
    from botocore.response import StreamingBody

    return {"Body": StreamingBody(io.BytesIO(b"data"), told)}


def test_an_answer_that_breaks_off_is_asked_for_again_a_bounded_number_of_times(stubbed):
    store, stub = stubbed
    for told in (9, 9, 4):
        stub.add_response("get_object", _answer(told), KEY)
    assert store.read("labels/x") == b"data"

    for _ in range(object_store._ATTEMPTS):
        stub.add_response("get_object", _answer(9))
    with pytest.raises(StoreError, match="does not answer"):
        store.read("labels/x")


def test_creating_is_one_conditional_put_and_412_means_that_somebody_was_first(stubbed):
    store, stub = stubbed
    wanted = {**KEY, "Body": b"data", "IfNoneMatch": "*"}
    stub.add_response("put_object", {}, wanted)
    stub.add_client_error("put_object", "PreconditionFailed", "no", 412, expected_params=wanted)

    assert [store.create("labels/x", b"data"), store.create("labels/x", b"data")] == [True, False]


def test_a_conflict_of_two_conditional_puts_is_tried_again_a_bounded_number_of_times(stubbed):
    store, stub = stubbed
    stub.add_client_error("put_object", "ConditionalRequestConflict", "no", 409)
    stub.add_client_error("put_object", "ConditionalRequestConflict", "no", 409)
    stub.add_response("put_object", {})
    assert store.create("labels/x", b"data")

    for _ in range(object_store._ATTEMPTS):
        stub.add_client_error("put_object", "ConditionalRequestConflict", "no", 409)
    with pytest.raises(StoreError, match="ConditionalRequestConflict"):
        store.create("labels/x", b"data")


def test_a_server_without_conditional_put_is_refused(stubbed):
    store, stub = stubbed
    stub.add_client_error("put_object", "NotImplemented", "no", 501)

    with pytest.raises(StoreError, match="knows no conditional PUT"):
        store.prepare([])


def test_a_server_that_ignores_the_condition_is_refused_and_its_probe_taken_away(stubbed):
    store, stub = stubbed
    for _ in range(2):
        stub.add_response("put_object", {})
    stub.add_response("delete_object", {})

    with pytest.raises(StoreError, match="overwrites files it was asked to create only if absent"):
        store.prepare([])


def test_a_file_too_large_for_one_put_is_refused(stubbed, monkeypatch):
    monkeypatch.setattr(object_store, "_MAX_PUT", 3)

    with pytest.raises(StoreError, match=r"has 4 bytes.*cut smaller shards"):
        stubbed[0].create("labels/x", b"data")


def test_what_is_missing_is_named_with_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(StoreError, match=r"pip install 'dto-pipeline\[s3\]'"):
        S3Store(ROOT)
    with pytest.raises(StoreError, match="names no bucket"):
        open_store("s3:///runs")
    with pytest.raises(StoreError, match="nowhere://x cannot be opened"):
        FsspecStore("nowhere://x")
