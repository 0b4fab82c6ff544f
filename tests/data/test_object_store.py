"""What a server may answer: each answer becomes a result or an error with advice."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from dto_pipeline.data import object_store
from dto_pipeline.data.columns import rows_sha256
from dto_pipeline.data.labels import build_label_table, read_labels, write_label_shard
from dto_pipeline.data.manifest import Manifest
from dto_pipeline.data.object_store import RemoteStore
from dto_pipeline.data.storage import StoreError, error_text, open_store
from tests.data.small_set import build_small, write_depth, write_image
from tests.data.test_labels import make_placed
from tests.memory_store import put
from tests.s3_server import ENVIRONMENT

Answer = tuple[int, bytes]


class Server(ThreadingHTTPServer):
    """Answers what the test prepared, in order, and keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers: list[Answer] = []
        self.asked: list[str] = []
        self.conditions: list[str | None] = []

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append(f"{self.command} {self.path}")
        self.server.conditions.append(self.headers.get("If-None-Match"))
        status, body = self.server.answers.pop(0)
        self.send_response(status)
        cut = body.endswith(b"...")  # more is announced than comes
        length = len(body) + 5 * cut
        if status == 206:  # the whole part is announced, whatever comes
            first, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
            self.send_header("Content-Range", f"bytes {first}-{last}/{last + 1}")
            length, cut = last + 1 - first, len(body) <= last - first
        self.send_header("Content-Length", str(length))
        self.send_header("ETag", '"1"')
        self.send_header("Last-Modified", "Mon, 30 Nov 2026 00:00:00 GMT")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.close_connection = cut

    do_PUT = do_HEAD = do_DELETE = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Tests are quiet."""


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    for key, value in ENVIRONMENT.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(object_store, "_PAUSE_S", 0.001)
    monkeypatch.setattr(object_store, "_ATTEMPTS", 3)
    server = Server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()
    assert server.answers == []


@pytest.fixture
def store(server) -> RemoteStore:
    return RemoteStore(f"s3://bucket/runs/a%20b?region=us-east-1&scheme=http&endpoint_override={server.address}")


def coded(status: int, code: str) -> Answer:
    return status, f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()


@pytest.mark.parametrize(
    ("answer", "advice"),
    [
        (coded(403, "AccessDenied"), "GetObject, PutObject, DeleteObject and ListBucket"),
        ((403, b""), "access is denied"),
        (coded(404, "NoSuchBucket"), "the bucket does not exist; make it"),
        (coded(403, "InvalidAccessKeyId"), "credentials are wrong or expired"),
        (coded(403, "SignatureDoesNotMatch"), "credentials are wrong or expired"),
        (coded(400, "ExpiredToken"), "credentials are wrong or expired"),
        (coded(400, "AuthorizationHeaderMalformed"), "another region; set AWS_REGION"),
        (coded(418, "SomethingNew"), "the server says .*SomethingNew"),
    ],
)
def test_an_error_names_bucket_key_and_next_step(server, store, answer, advice):
    server.answers = [answer]

    with pytest.raises(StoreError, match=f"^bucket bucket, key runs/a b/labels/x: .*{advice}") as raised:
        store.read("labels/x")
    assert "\n" not in str(raised.value)


def test_an_object_that_is_not_there_is_a_missing_file(server, store):
    server.answers = [coded(404, "NoSuchKey"), (404, b"")]

    for ask in (store.read, store.size):
        with pytest.raises(FileNotFoundError, match="s3://bucket/runs/a b/labels/x"):
            ask("labels/x")


def test_a_request_whose_answer_breaks_off_is_sent_again_a_bounded_number_of_times(server, store):
    server.answers = [(200, b"half..."), (206, b" more")]
    assert store.read("labels/x") == b"half... more"

    server.answers = [(200, b"..."), (206, b""), (206, b"")]
    with pytest.raises(StoreError, match="answers break off") as raised:
        store.read("labels/x")
    assert error_text(raised.value) == "the server's answers break off; check network and proxy"


def listing(*names: str, more: bool = False, cut: bool = False) -> Answer:
    fields = "<LastModified>2026-11-30T00:00:00Z</LastModified><ETag>1</ETag><Size>3</Size>"
    found = "".join(f"<Contents><Key>runs/a b/{name}</Key>{fields}</Contents>" for name in names)
    going = "<IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken>" if more else ""
    return 200, f"<ListBucketResult>{found}{going}</ListBucketResult>".encode() + b"..." * cut


def test_a_listing_that_breaks_off_goes_on_behind_its_last_page_a_bounded_number_of_times(server, store):
    server.answers = [listing("a", cut=True), listing("a")]
    assert store.entries() == {"a": 3}

    page = [f"{number:02}" for number in range(50)]  # obstore hands out fifty at once
    server.answers = [listing(*page, more=True), listing("a", cut=True), listing("a")]
    assert list(store.walk()) == [*page, "a"]
    assert server.asked[-1].endswith("start-after=runs%2Fa+b%2F49")

    server.answers = [listing("a", cut=True)] * 3
    with pytest.raises(StoreError, match="answers break off"):
        store.entries()


def test_creating_is_one_conditional_put_and_412_means_that_somebody_was_first(server, store):
    server.answers = [(200, b""), coded(412, "PreconditionFailed"), (200, b"data")]

    assert [store.create("labels/x", b"data"), store.create("labels/x", b"data")] == [True, False]
    place = "/bucket/runs/a%20b/labels/x"
    assert server.asked == [f"PUT {place}", f"PUT {place}", f"HEAD {place}"]
    assert server.conditions == ["*", "*", None]


def test_a_conflict_of_two_conditional_puts_is_tried_again_a_bounded_number_of_times(server, store):
    conflict = [coded(409, "ConditionalRequestConflict"), (404, b"")]
    server.answers = [*conflict, *conflict, (200, b"")]
    assert store.create("labels/x", b"data")

    server.answers = conflict * 3
    with pytest.raises(StoreError, match="conditional requests met others"):
        store.create("labels/x", b"data")


def test_a_server_without_conditional_put_is_refused(server, store):
    server.answers = [coded(501, "NotImplemented")] * 3

    with pytest.raises(StoreError, match="knows no conditional PUT"):
        store.prepare([])


def test_a_server_that_ignores_the_condition_is_refused_and_its_probe_taken_away(server, store):
    server.answers = [(200, b""), (200, b""), (204, b"")]

    with pytest.raises(StoreError, match="overwrites files it was asked to create only if absent"):
        store.prepare([])
    assert server.asked[-1].startswith("DELETE /bucket/runs/a%20b/.probe.tmp-")


def test_any_part_of_an_object_is_read_and_an_empty_one_has_none():
    store = open_store("memory://parts")
    store.replace("x", b"0123456789")
    store.replace("empty", b"")

    with store.open("x") as source:
        assert (source.size(), source.read_at(3, 5), source.read_at(9, 8)) == (10, b"567", b"89")
    assert store.read("x", 99) == b"0123456789"
    assert store.read("empty", 99) == b""


def test_parquet_in_a_store_is_read_by_the_calling_thread_in_few_requests(tmp_path, monkeypatch):
    """A thread of Arrow that holds Python's bytes as the process ends aborts it: exit code 134 after all was well."""
    names = ["a.jpg", "b.jpg", "c.jpg"]
    for name in names:
        write_image(tmp_path, name)
        write_depth(tmp_path, name)
    manifest, _ = build_small(tmp_path, names)
    labels = build_label_table([make_placed(number, 3) for number in range(4)])
    write_label_shard(labels, tmp_path / "labels.parquet", {})
    readers: list[str] = []
    read_part = RemoteStore.read_part

    def watched(store: RemoteStore, name: str, start: int, count: int) -> bytes:
        readers.append(threading.current_thread().name)
        return read_part(store, name, start, count)

    monkeypatch.setattr(RemoteStore, "read_part", watched)
    for name in ("small.parquet", "labels.parquet"):
        put(f"reading/{name}", (tmp_path / name).read_bytes())
    stored = Manifest.open("memory://reading/small.parquet").read_shard(0)
    assert rows_sha256(stored) == rows_sha256(manifest.read_shard(0))
    assert rows_sha256(read_labels("memory://reading/labels.parquet")) == rows_sha256(labels)
    assert set(readers) == {threading.main_thread().name}
    assert len(readers) <= 5  # two for each file that is opened, one where the footer alone is read


def test_a_web_server_that_sends_no_parts_of_files_is_named_with_what_to_do(server):
    server.answers = [(200, b"0123456789"), (200, b"0123456789")]
    with pytest.raises(StoreError, match="sends no parts of files; fetch them"):
        open_store(f"http://{server.address}/images").read("a b.jpg", 4)


def test_a_profile_is_refused_with_the_command_that_gives_its_keys(monkeypatch):
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_PROFILE", "labels")

    with pytest.raises(StoreError, match=r"AWS_PROFILE is not read: .*export-credentials --profile NAME"):
        open_store("s3://bucket/with-a-profile")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "y")
    assert open_store("s3://bucket/with-keys")


def _forked(root: str, told) -> None:
    try:
        RemoteStore(root).read("x")
    except StoreError as error:
        told.put(str(error))


def test_requests_of_a_forked_process_are_refused_instead_of_waiting_for_ever(server, store):
    server.answers = [(200, b"")]
    store.read("x")
    context = multiprocessing.get_context("fork")
    told = context.Queue()
    child = context.Process(target=_forked, args=(store.root, told))
    child.start()

    assert "start it with the multiprocessing context 'forkserver' or 'spawn'" in told.get(timeout=30)
    child.join()


def test_places_that_nothing_opens_are_refused():
    with pytest.raises(StoreError, match="names no bucket"):
        open_store("s3:///runs")
    with pytest.raises(StoreError, match="nowhere://x cannot be opened"):
        RemoteStore("nowhere://x")
    with pytest.raises(StoreError, match=r"query holds \['endpoint'\]"):
        RemoteStore("s3://bucket/x?endpoint=here")
    with pytest.raises(StoreError, match=r"az://x cannot be opened.*Account"):
        RemoteStore("az://x")


def test_memory_stays_one_store_however_many_other_places_were_opened() -> None:
    kept = open_store("memory://kept")
    kept.replace("a", b"1")
    for number in range(70):  # more than clients are kept
        open_store(f"http://127.0.0.1:9/{number}")
        open_store(f"http://127.0.0.{number + 1}:9")
    assert object_store.open_remote("memory://kept") is not kept
    assert open_store("memory://kept").read("a") == b"1"
