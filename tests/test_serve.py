"""`burnish serve`: a run's model over HTTP, asked by real clients on loopback, and by hostile ones."""

import asyncio
import contextlib
import http.client
import io
import json
import os
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.resources import files

import numpy as np
import pytest

import burnish
from burnish.errors import RecipeError, RunError
from burnish.reports.chinese import SERVED
from burnish.ship.answering import Asked
from burnish.ship.predictor import Predictor
from burnish.ship.serve import connection
from burnish.ship.serve.batches import Batches
from burnish.ship.serve.limits import Limits
from burnish.ship.serve.listening import bound, own_names
from burnish.ship.serve.refusal import Refusal
from images import noise

try:
    import resource
except ImportError:  # Windows
    resource = None

QUICK = {"model": "random:test_resnet", "method": "probe", "budget": None, "image_size": 64, "seed": 0}
SMALL = ["--most-bytes", "400000", "--most-images", "20", "--most-pixels", "1000000", "--most-seconds", "3"]


@pytest.fixture(scope="module")
def run(shapes, tmp_path_factory):
    return burnish.fit(shapes, out=tmp_path_factory.mktemp("runs") / "shapes", cache="off", **QUICK)


class Server:
    """The program, on a port of its own."""

    def __init__(self, folder, *words, fewest_files=None):
        command = [sys.executable, "-m", "burnish", "serve", str(folder), "--port", "0", *words]
        plain = {**os.environ, "OMP_NUM_THREADS": "1"}  # as many as in the tests, for the same bits
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=plain)
        self.lines = [self.process.stdout.readline()]
        if fewest_files is not None:  # besides those that it has open
            most = len(os.listdir(f"/proc/{self.process.pid}/fd")) + fewest_files
            resource.prlimit(self.process.pid, resource.RLIMIT_NOFILE, (most, most))
        found = re.search(r"http://127\.0\.0\.1:(\d+)/", self.lines[0])
        assert found, self.lines[0] + self.process.stdout.read()
        self.port = int(found[1])
        self.reading = threading.Thread(target=self._read, daemon=True)
        self.reading.start()

    def _read(self):
        self.lines += iter(self.process.stdout.readline, "")

    def ask(self, method, target, body=None, **headers):
        """(status, value of the JSON or text, headers)"""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, target, body, {name.replace("_", "-"): value for name, value in headers.items()})
            answer = connection.getresponse()
            told = answer.read()
            is_json = answer.headers["content-type"] == "application/json"
            return answer.status, json.loads(told) if is_json else told.decode(), answer.headers
        finally:
            connection.close()

    def refused(self, status, method, target, body=None, **headers):
        """The sentence with which a request is refused."""
        found, told, _ = self.ask(method, target, body, **headers)
        assert found == status and set(told) == {"error"}, told
        return told["error"]

    def send(self, data):
        """What comes back for these bytes on a connection of their own, until it ends or nothing comes for 8 s."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=8) as client:
            client.sendall(data)
            return received(client)

    def stop(self, number=signal.SIGTERM):
        """The code that it leaves with, and the seconds it takes."""
        began = time.monotonic()
        self.process.send_signal(number)
        code = self.process.wait(timeout=20)
        self.reading.join(5)
        return code, time.monotonic() - began


def received(client):
    pieces = []
    try:
        while piece := client.recv(65536):
            pieces.append(piece)
    except (TimeoutError, ConnectionResetError):
        pass
    return b"".join(pieces)


@pytest.fixture(scope="module")
def server(run):
    one = Server(run.folder, *SMALL)
    yield one
    one.process.kill()


@pytest.fixture(autouse=True)
def still_there(request):
    """Whatever a client does, the next one is answered."""
    yield
    if "server" in request.fixturenames:
        ask, until = request.getfixturevalue("server").ask, time.monotonic() + 5
        while (found := ask("GET", "/health")[:2]) != (200, {"status": "ok", "images_in_work": 0}):
            assert time.monotonic() < until, found  # what was refused in the midst of a body is let go a moment later
            time.sleep(0.05)
        assert "Traceback" not in "".join(request.getfixturevalue("server").lines)


def multipart(*parts, end=True):
    """(body, content type) of files (name, bytes) or fields (None, bytes)."""
    body = b""
    for name, content in parts:
        told = b"" if name is None else b'; filename="' + name + b'"'
        body += b'--edge\r\nContent-Disposition: form-data; name="image"' + told + b"\r\n\r\n" + content + b"\r\n"
    return body + (b"--edge--\r\n" if end else b""), "multipart/form-data; boundary=edge"


def png(width, height):
    """A PNG that says so many pixels, all of one colour, in few bytes."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compressobj(9)
    data = b"".join(rows.compress(bytes(1 + (width + 7) // 8)) for _ in range(height)) + rows.flush()
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
        + chunk(b"IDAT", data)
        + chunk(b"IEND", b"")
    )


def told(run, images, names, **asked):
    """What `predict` says of these bytes, as JSON has it."""
    rows = [one.to_json() for one in run.predict(images, **asked)]
    return json.loads(json.dumps([{**row, "path": name} for row, name in zip(rows, names, strict=True)]))


# ---- answers ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photos(shapes):
    return [file.read_bytes() for file in sorted(shapes.rglob("*.png"))[::3]]


def test_an_image_gets_the_answer_of_predict_to_the_last_digit(server, run, photos):
    for image in photos[:3]:
        status, found, _ = server.ask("POST", "/predict?top=3", image)
        assert (status, found) == (200, told(run, [image], ["image"], top=3))


def test_files_of_one_request_are_batched_as_predict_batches_them(server, run, photos):
    names = [f"{number}.png" for number in range(20)]
    body, kind = multipart(*((name.encode(), image) for name, image in zip(names, photos, strict=True)))
    status, found, _ = server.ask("POST", "/predict?top=2", body, content_type=kind)
    assert run.predictor.batch == 16 and (status, found) == (200, told(run, photos, names, top=2))


def test_what_is_asked_of_predict_can_be_asked_here(server, run, photos):
    for target, asked in (
        ("reject=0.6", {"reject": 0.6}), ("sets=0.9", {"sets": 0.9}), ("find=red=0.5&find=blue=0.4", {"find": {"red": 0.5, "blue": 0.4}}),
    ):  # fmt: skip
        status, found, _ = server.ask("POST", f"/predict?{target}", photos[0])
        assert (status, found) == (200, told(run, [photos[0]], ["image"], **asked)), target


def test_an_image_beside_a_bad_one_is_answered_and_the_bad_one_says_why(server, photos):
    body, kind = multipart((b"good.png", photos[0]), (b"bad.png", b"no image"), (b"large.png", png(2000, 1000)))
    status, found, _ = server.ask("POST", "/predict", body, content_type=kind)
    assert status == 200 and [row["problem"] is None for row in found] == [True, False, False]
    assert "not an image" in found[1]["problem"] and "1,000,000 that are taken" in found[2]["problem"]


def test_a_photograph_turned_by_exif_is_read_upright_as_everywhere(server, run):
    image, turned = noise(60, 90), io.BytesIO()
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(turned, "JPEG", exif=exif)
    assert server.ask("POST", "/predict?top=3", turned.getvalue())[1] == told(
        run, [turned.getvalue()], ["image"], top=3
    )


def test_the_model_is_told_without_a_path_of_this_machine(server, run):
    status, found, _ = server.ask("GET", "/model")
    bundle = run.predictor.bundle
    assert (
        status == 200
        and found["classes"] == list(bundle.classes)
        and found["preprocess"] == bundle.preprocess.to_json()
    )
    assert found["record"]["verdict"] == run.verdict.sentence() and found["licence"] == bundle.licence
    assert str(run.folder.parent) not in json.dumps(found)


def test_a_package_that_was_copied_alone_is_served_without_a_record(run, photos):
    from starlette.testclient import TestClient

    package = run.folder / json.loads((run.folder / "package.json").read_text())["current"]
    app = burnish.ship.serve.application(package)
    with TestClient(app) as client:
        assert client.get("/model").json()["record"] is None
        assert client.post("/predict?top=3", content=photos[0]).json() == told(run, [photos[0]], ["image"], top=3)


# ---- batches ---------------------------------------------------------------------------------------------------------


def test_what_waits_while_a_batch_is_computed_is_the_next_batch():
    begun, go, sizes = threading.Event(), threading.Event(), []

    def compute(images):
        sizes.append(len(images))
        begun.set()
        assert go.wait(10)
        return images[:, 0, 0, :1].astype(float), None

    batches = Batches(compute, together=4, waiting=100)
    first = batches.submit([np.full((2, 2, 3), 7, np.uint8)])
    assert begun.wait(10)
    rest = [batches.submit([np.full((2, 2, 3), number, np.uint8)])[0] for number in range(6)]
    rest[1].cancel()  # whose asker has left
    go.set()
    assert first[0].result(10)[0] == [7.0]
    assert [one.result(10)[0][0] for one in rest if not one.cancelled()] == [0, 2, 3, 4, 5]
    assert sizes == [1, 3, 2]


def test_a_batch_that_fails_fails_for_its_own_and_the_next_is_computed():
    def compute(images):
        if images.max() == 9:
            raise ValueError("nine")
        return np.zeros((len(images), 2)), np.ones(len(images), bool)

    batches = Batches(compute, together=1, waiting=9)
    bad, good = batches.submit([np.full((2, 2, 3), 9, np.uint8), np.zeros((2, 2, 3), np.uint8)])
    with pytest.raises(ValueError, match="nine"):
        bad.result(10)
    assert good.result(10)[1] is True


def test_what_is_answered_is_sent_at_once():
    """asyncio sends without waiting for an acknowledgement (TCP_NODELAY) only on sockets that say they are TCP's."""
    with bound("127.0.0.1", 0) as door:
        assert door.proto == socket.IPPROTO_TCP


def test_a_full_queue_is_told_and_a_place_is_free_again_after_an_answer():
    batches = Batches(lambda images: (np.zeros((len(images), 1)), None), together=1, waiting=3)
    with batches.room(2):
        with pytest.raises(Refusal, match="2 images are in work, and 3 are the most") as refused, batches.room(2):
            pass
        assert refused.value.status == 503 and refused.value.headers == {"retry-after": "1"}
        with batches.room(1):
            assert batches.inside == 3
    with batches.room(3):
        pass


def test_more_images_than_may_wait_are_told_to_come_back(run, photos):
    one = Server(run.folder, "--most-waiting", "4", "--most-images", "4", "--most-connections", "200", "--quiet")
    try:
        body, kind = multipart(*[(b"a.png", photos[0])] * 3)
        with ThreadPoolExecutor(24) as pool:
            found = list(pool.map(lambda _: one.ask("POST", "/predict", body, content_type=kind), range(96)))
        codes = {status for status, _, _ in found}
        assert codes == {200, 503}
        assert all(
            headers["retry-after"] == "1" and "ask again" in value["error"]
            for status, value, headers in found
            if status == 503
        )
        assert one.ask("POST", "/predict", body, content_type=kind)[0] == 200
        assert len(one.lines) == 1, "quiet: no line for a request"
    finally:
        one.process.kill()


# ---- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ("top=0", "top is '0', expected a whole number, 1 or more"), ("top=x", "top is 'x', expected a whole number"),
        ("reject=1.5", "reject is '1.5', expected a share between 0 and 1"), ("sets=nan", "sets is 'nan'"),
        ("reject=0.9999", "this package can show"), ("find=rde=0.5", r"no class 'rde' \(nearest: red"), ("find=0.5", "expected a class and"),
        ("topp=1", "'topp' is no question, expected one of top, reject, sets, find"), ("top=1&top=2", "asked twice"),
        ("find=red=0.5&reject=0.5", "exclude each other"),
        ("find=red=0.5&find=red=0.4", r"find names 'red' twice, with 0\.5 and 0\.4"), ("url=http://x/", "'url' is no question"),
    ],
)  # fmt: skip
def test_a_wrong_question_is_answered_in_a_sentence(server, photos, target, sentence):
    assert re.search(sentence, server.refused(400, "POST", f"/predict?{target}", photos[0]))


@pytest.mark.parametrize(
    ("status", "body", "kind", "sentence"),
    [
        (400, b"", "image/png", "the body is empty, expected an image"),
        (422, b"no image at all", "image/png", "not an image"),
        (422, b"\x89PNG\r\n\x1a\n" + b"0" * 100, "", "truncated"),
        (415, b"{}", "application/json", "of the type 'application/json', expected an image or multipart"),
        (415, b"/etc/passwd", "text/plain", "'text/plain'"),
        (415, b"x", "text/<scr\x9bipt>", r"'text/<scr\\x9bipt>'"),
        (400, b"x", "multipart/form-data", "names no boundary"),
        (400, b"x", "multipart/form-data; boundary=edge", "not multipart|cut off"),
        (400, *multipart((None, b"x.jpg")), "curl -F image=@x.jpg, with the @"),
        (400, *multipart(), "not multipart|no file came"),
        (400, *multipart((b"a.png", b"abc"), end=False), "cut off"),
        (400, multipart((b"a.png", b"abc"))[0][:-30], multipart()[1], "cut off"),
        (422, *multipart((b"/etc/passwd", b"x"), (b"b", b"y")), "not an image"),
        (413, *multipart(*[(b"a", b"")] * 21), "more than 20 images, the most of a request"),
        (413, *multipart(*[(b"a", b"")] * 5000), "more than 20 images"),
        (413, *multipart(*[(None, b"")] * 5000), "parts that are no files"),
        (413, b"x" * 400_001, "image/png", "400,001 bytes, 400,000 are the most"),
        (413, png(2000, 1000), "image/png", "more pixels than the 1,000,000 that are taken"),
        (413, png(30_000, 30_000), "image/png", "more pixels than the 1,000,000"),
    ],
)  # fmt: skip
def test_a_body_that_is_no_image_is_refused_in_a_sentence(server, status, body, kind, sentence):
    assert re.search(sentence, server.refused(status, "POST", "/predict", body, content_type=kind))


def test_a_body_that_is_packed_is_not_unpacked(server):
    packed = zlib.compress(bytes(10_000_000))
    assert "encoded as 'gzip'" in server.refused(415, "POST", "/predict", packed, content_encoding="gzip")


def test_addresses_that_there_are_not_and_methods_that_are_not_answered_are_told(server):
    for target in ("/nothing", "/../../etc/passwd", "/predict/", "/%00", "//predict"):
        assert "expected POST /predict" in server.refused(404, "GET", target)
    assert server.ask("GET", "/predict")[0] == server.ask("DELETE", "/model")[0] == 405
    assert server.ask("GET", "/predict")[2]["allow"] == "POST"


def test_no_answer_names_a_place_of_this_machine_or_shows_a_traceback(server, run, photos):
    told = [
        server.ask("POST", "/predict?find=/etc/passwd=0.5", photos[0]), server.ask("POST", "/predict", photos[0][:-200]),
        server.ask("GET", str(run.folder)), server.ask("GET", "/model"), server.ask("GET", "/"),
    ]  # fmt: skip
    for _, value, _ in told:
        assert not re.search(r"Traceback|site-packages|\.py|" + re.escape(str(run.folder.parent)), str(value)), value


# ---- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "echoed"),
    [
        (b"<img src=x onerror=alert(1)>.png", "<img src=x onerror=alert(1)>.png"), (b"a\xe2\x80\xaegnp.exe", r"a\u202egnp.exe"),
        (b"esc\x1b[31m.png", r"esc\x1b[31m.png"), (b"../../etc/passwd", "../../etc/passwd"), (b"n" * 3000, "n" * 199 + "…"),
        (b"\xff\xfe.png", r"\xff\xfe.png"), ("照片.jpg".encode(), "照片.jpg"),
    ],
)  # fmt: skip
def test_a_name_is_echoed_so_that_it_can_do_nothing(server, photos, name, echoed):
    body, kind = multipart((name, photos[0]))
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request("POST", "/predict", body, {"Content-Type": kind})
    raw = connection.getresponse().read()
    connection.close()
    assert raw.isascii() and b"<" not in raw and b"\x1b" not in raw
    assert json.loads(raw)[0]["path"] == echoed


def test_the_log_is_one_line_a_request_whatever_its_address_is(server):
    time.sleep(0.3)
    before = len(server.lines)
    server.send(
        b"GET /a%0d%0aFORGED%20200%1b[31m%e2%80%ae?q=%0a HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    )
    server.ask("GET", "/" + "x" * 3000)
    time.sleep(0.3)
    added = server.lines[before:]
    assert len(added) == 2 and all(line.strip().isprintable() and len(line) < 300 for line in added)
    assert r"\r\nFORGED 200\x1b[31m\u202e?q=%0a  404" in added[0]


# ---- other sites -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "[", ""])
def test_a_name_that_was_made_to_point_here_is_refused(server, host):
    assert "is no name of this service" in server.refused(400, "GET", "/", host=host)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:9"])
def test_the_names_of_this_machine_are_answered(server, host):
    assert server.ask("GET", "/health", host=host)[0] == 200


@pytest.mark.parametrize(
    "headers",
    [{"origin": "https://evil.example"}, {"origin": "null"}, {"origin": "http://localhost:3000"}, {"origin": "http://["},
     {"sec_fetch_site": "cross-site"}, {"sec_fetch_site": "same-site"}],
)  # fmt: skip
def test_a_page_of_another_site_cannot_ask(server, photos, headers):
    assert "another site" in server.refused(403, "POST", "/predict", photos[0], **headers)


def test_its_own_page_can_ask(server, photos):
    own = {"origin": f"http://127.0.0.1:{server.port}", "sec_fetch_site": "same-origin"}
    assert server.ask("POST", "/predict", photos[0], **own)[0] == 200


def test_every_answer_has_the_headers_that_keep_it_in_its_place(server):
    answers = [server.ask("GET", "/")[2], server.ask("GET", "/model")[2], server.ask("POST", "/predict", b"")[2], server.ask("GET", "/x")[2],
               server.ask("GET", "/", host="evil")[2]]  # fmt: skip
    for headers in answers:
        assert headers["x-content-type-options"] == "nosniff" and headers["x-frame-options"] == "DENY"
        assert "default-src 'none'" in headers["content-security-policy"] and "server" not in headers
        assert "access-control-allow-origin" not in headers


# ---- the page --------------------------------------------------------------------------------------------------------


def test_the_page_loads_nothing_from_elsewhere_and_runs_its_own_script_alone(server, run):
    _, page, headers = server.ask("GET", "/")
    assert not re.search(r"(src|href)=\"?(https?:)?//", page) and page.count("<script>") == page.count("</script>") == 1
    policy = headers["content-security-policy"]
    assert "unsafe" not in policy and "script-src 'sha256-" in policy and "style=" not in page
    assert all(name in page for name in run.classes)


def test_the_page_speaks_chinese_where_it_is_asked_to(server):
    assert "照片上是什么" in server.ask("GET", "/", accept_language="zh-CN,zh;q=0.9")[1]
    assert "照片上是什么" in server.ask("GET", "/?lang=zh")[1] and "照片" not in server.ask("GET", "/")[1]


def test_the_reason_of_a_refusal_is_told_in_the_language_of_the_page_and_marked_where_it_is_english(server):
    page = server.ask("GET", "/?lang=zh")[1]
    statuses = set(re.findall(r'data-refused(\d*)="[^"]*[\u4e00-\u9fff]', page))
    assert statuses == {"", "408", "413", "422", "503"} and page.count('why.lang = "en"') == 2


def test_why_an_image_is_declined_is_told_in_the_language_of_the_page(server, run):
    """The page knows both reasons by how the answer says them."""
    page, answering = server.ask("GET", "/?lang=zh")[1], Asked().settled(run.predictor.bundle)
    row = np.full(len(run.classes), 1 / len(run.classes))
    unsure, strange = (
        replace(answering, least=0.9).prediction("x", row, strange=one).declined for one in (False, True)
    )
    assert (
        re.fullmatch(re.search(r"declined\.match\(/(.*)/\)", page)[1], unsure) and f'declined === "{strange}"' in page
    )
    assert 'data-strange="与训练图像不同"' in page and 'data-unsure="没有把握：概率 {came}，要求至少 {least}"' in page
    assert 'data-unsure="unsure: {came}, and {least} is asked for"' in server.ask("GET", "/")[1]


def test_every_word_of_the_page_is_translated():
    source = files("burnish.reports").joinpath("served.html").read_text(encoding="utf-8")
    assert set(re.findall(r'_\("([^"]+)"', source)) == SERVED.keys()


def test_names_of_classes_are_text_on_the_page(tmp_path):
    from burnish.reports.served import page

    model = {"classes": ["<script>alert(1)</script>", "a\u202eb", '"x'], "several": False, "method": "probe", "base_model": "<b>", "licence": "&",
             "record": None, "tells": {"reject": True}}  # fmt: skip
    text = page(model, {"bytes": 32_000_000}, "en")
    assert (
        "&lt;script&gt;alert(1)" in text and r"a\u202eb" in text and "&lt;b&gt;" in text and text.count("<script>") == 1
    )


# ---- hostile clients -------------------------------------------------------------------------------------------------


def test_a_body_in_chunks_without_end_is_cut_off_at_the_limit(server):
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=15) as client:
        client.sendall(head)
        began, sent, answer = time.monotonic(), 0, b""
        try:
            while not answer:
                client.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")
                sent += 65536
                if select.select([client], [], [], 0.01)[0]:
                    answer = client.recv(65536)
            assert b"413" in answer.splitlines()[0] and sent < 4_000_000
            while time.monotonic() - began < 20:  # it goes on, and is thrown out
                client.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")
                time.sleep(0.05)
            pytest.fail("the connection was kept for 20 s")
        except (ConnectionResetError, BrokenPipeError):
            assert time.monotonic() - began < 10


def test_a_sender_who_takes_too_long_is_told_and_left(server):
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nabc"
    began = time.monotonic()
    answer = server.send(head)
    assert (
        b" 408 " in answer.splitlines()[0]
        and b"had not come whole after 3 s" in answer
        and time.monotonic() - began < 10
    )


def test_headers_that_come_drop_by_drop_are_not_waited_for(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=8) as client:
        began = time.monotonic()
        client.sendall(b"GET / HTTP/1.1\r\n")
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            while time.monotonic() - began < 10:
                client.sendall(b"a: b\r\n")
                time.sleep(0.2)
        assert time.monotonic() - began < 6


@pytest.mark.parametrize(
    "data",
    [b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"".join(b"h%d: %s\r\n" % (at, b"x" * 100) for at in range(1000)) + b"\r\n",
     b"GET / HTTP/1.1\r\nHost: localhost\r\nlong: " + b"x" * 1_000_000 + b"\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00" + bytes(500),
     b"GET / HTTP/1.1\r\n\r\n", b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
     b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcde",
     b"POST /predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nZZZ\r\n"],
)  # fmt: skip
def test_what_is_no_http_is_refused_as_json(server, data):
    answer = server.send(data)
    if answer:  # else it was left at once, while more came
        assert b" 400 " in answer.splitlines()[0] and b'{"error": ' in answer and b"nosniff" in answer
    assert len(answer) > 0 or len(data) > 100_000


@pytest.mark.parametrize(
    "lengths", [b"Content-Length: 5\r\nTransfer-Encoding: chunked", b"Transfer-Encoding: chunked\r\nContent-Length: 0"]
)
def test_a_request_within_a_body_whose_length_is_told_twice_is_not_answered(server, lengths):
    hidden = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    answer = server.send(b"POST /predict HTTP/1.1\r\nHost: localhost\r\n" + lengths + b"\r\n\r\n0\r\n\r\n" + hidden)
    assert b" 400 " in answer.splitlines()[0] and b"the body's length is told twice" in answer
    assert b"connection: close" in answer.lower() and b"images_in_work" not in answer and answer.count(b"HTTP/1.1") == 1


def test_two_hundred_requests_at_once_are_each_answered_or_told_to_come_back(server, photos):
    with ThreadPoolExecutor(200) as pool:
        codes = list(pool.map(lambda _: server.ask("POST", "/predict", photos[0])[0], range(400)))
    assert set(codes) <= {200, 503} and codes.count(200) > 30
    time.sleep(0.5)


def test_connections_that_say_nothing_are_counted_and_those_beyond_are_told(run):
    one = Server(run.folder, "--most-connections", "5", "--most-seconds", "12")
    try:
        idle = [socket.create_connection(("127.0.0.1", one.port), timeout=8) for _ in range(5)]
        time.sleep(0.3)
        assert "5 connections are open, the most at a time" in one.refused(503, "GET", "/health")
        idle += [socket.create_connection(("127.0.0.1", one.port), timeout=8) for _ in range(195)]
        time.sleep(0.5)
        assert received(idle[-1]) == b""  # those beyond four times as many are closed unheard
        for client in idle:
            client.close()
        time.sleep(0.5)
        assert one.ask("GET", "/health")[0] == 200
        idle = [socket.create_connection(("127.0.0.1", one.port), timeout=8) for _ in range(5)]
        assert b" 408 " in received(idle[0]).splitlines()[0]  # after four seconds their places are free
        assert one.ask("GET", "/health")[0] == 200
    finally:
        one.process.kill()


@contextlib.contextmanager
def started(run, limits):
    """The port of a service in a thread of this process."""
    stop, lines = threading.Event(), []
    watcher = type("Told", (burnish.Lines,), {"say": lambda self, text: lines.append(text)})()
    more = {"port": 0, "stop": stop, "watcher": watcher, "log": False, "limits": limits}
    thread = threading.Thread(target=burnish.serve, args=[run.folder], kwargs=more)
    thread.start()
    try:
        until = time.monotonic() + 60
        while not lines and time.monotonic() < until:
            time.sleep(0.05)
        yield int(re.search(r":(\d+)/", lines[0])[1])
    finally:
        stop.set()
        thread.join(10)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere this machine has one address of its own")
def test_one_address_leaves_half_of_the_connections_to_others(run, monkeypatch):
    def known(client):  # addresses of this machine stand for those of others
        return client[0] if client[0] != "127.0.0.1" else None

    monkeypatch.setattr(connection, "neighbourhood_of", known)
    with started(run, Limits(connections=6, seconds=30)) as port:

        def reached(address):
            return socket.create_connection(("127.0.0.1", port), timeout=8, source_address=(address, 0))

        def asked(client):
            client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            return received(client)

        idle = [reached("127.0.0.2") for _ in range(3)]
        time.sleep(0.3)
        with reached("127.0.0.2") as one_more:
            assert b"3 connections of your address are open, the most of one" in asked(one_more)
        idle += [reached("127.0.0.2") for _ in range(40)]  # however many it tries
        time.sleep(0.3)
        for address in ("127.0.0.3", "127.0.0.4", "127.0.0.1"):
            with reached(address) as other:
                assert b" 200 " in asked(other).splitlines()[0]
        for client in idle:
            client.close()


def test_who_counts_as_one_address():
    of = connection.neighbourhood_of
    assert (
        of(("127.0.0.1", 1)) is of(("::1", 1)) is of(("::ffff:127.0.0.1", 1)) is of(None) is of(("a socket", 0)) is None
    )
    assert of(("192.0.2.7", 1)) == of(("::ffff:192.0.2.7", 2)) != of(("192.0.2.8", 1))
    assert of(("2001:db8::1", 1)) == of(("2001:db8::ffff:2", 1)) != of(("2001:db8:0:1::1", 1))
    assert of(("fe80::1%eth0", 1)) is not None


def test_a_client_that_leaves_in_the_middle_is_forgotten(server, photos):
    head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(photos[0])}\r\n\r\n".encode()
    for part in (head + photos[0][:200], head + photos[0]):
        client = socket.create_connection(("127.0.0.1", server.port))
        client.sendall(part)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # leaves with a reset
        client.close()
    time.sleep(0.5)


def test_a_body_in_pieces_of_a_byte_is_refused_and_one_in_small_pieces_is_not(server):
    begin = (
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    status, _, body = server.send(begin + b"1\r\nx\r\n" * 5000 + b"0\r\n\r\n").partition(b"\r\n")
    assert status == b"HTTP/1.1 400 Bad Request" and b"in pieces of a few bytes; send it as a whole" in body
    image = io.BytesIO()
    noise(400, 300).save(image, "PNG")
    whole = image.getvalue()
    assert len(whole) > 80 * 4096
    pieces = [whole[at : at + 80] for at in range(0, len(whole), 80)]
    body = b"".join(b"%x\r\n%b\r\n" % (len(one), one) for one in pieces) + b"0\r\n\r\n"
    told = server.send(begin.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n") + body)
    assert told.startswith(b"HTTP/1.1 200 OK")


def test_a_refused_body_is_read_on_so_that_its_sender_reads_why(server):
    """A client that sends all before it reads would otherwise find the connection reset."""
    body = b"x" * 3_000_000
    assert "3,000,000 bytes, 400,000 are the most" in server.refused(413, "POST", "/predict", body)


# ---- from start to end -----------------------------------------------------------------------------------------------


def test_a_port_that_is_taken_is_told_before_pytorch_is_loaded(run, tmp_path):
    with bound("127.0.0.1", 0) as door:
        door.listen()
        port = door.getsockname()[1]
        began = time.monotonic()
        command = [sys.executable, "-m", "burnish", "serve", str(run.folder), "--port", str(port)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        seconds = time.monotonic() - began
    assert done.returncode == 2 and done.stderr == (
        f"burnish: 127.0.0.1:{port} is taken by another program; name another with --port, or 0 for any free one\n"
    )
    code = (
        "import sys, burnish.ship.serve.listening, burnish.ship.serve.limits, burnish.verbs.serving;"
        "assert not {'torch', 'starlette', 'uvicorn'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert seconds < 10  # on a busy machine; it is half a second alone


@pytest.mark.parametrize("host", ["nowhere.invalid", "a" * 300, "203.0.113.7", "\x00"])
def test_a_host_that_is_not_of_this_machine_is_told(host):
    with pytest.raises((RecipeError, RunError), match=r"host is .*(127\.0\.0\.1)"):
        bound(host, 0)


def test_limits_that_cannot_be_are_told():
    with pytest.raises(RecipeError, match="images is 0, pixels is -1; expected 1 or more"):
        Limits(images=0, pixels=-1)
    with pytest.raises(RecipeError, match="32 images a request find no room among 8"):
        Limits(waiting=8)


def test_without_its_packages_it_says_how_to_install_them(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(burnish.BurnishError, match=r"serving needs uvicorn, .*run: pip install 'burnish\[serve\]'"):
        burnish.serve(run.folder, port=0)


def test_a_stopped_service_leaves_no_answer_half_said(run, photos):
    """SIGTERM in the midst of batches: whoever was heard has a whole answer, the others none."""
    one = Server(run.folder, "--quiet")
    whole, none, broken = [], [], []

    def client():
        while not none and not broken:
            try:
                status, value, _ = one.ask("POST", "/predict", photos[0])
                (whole if status == 200 and len(value) == 1 else broken).append(status)
            except ConnectionError:  # refused, or reset before a byte of an answer came
                none.append(1)
            except (http.client.HTTPException, ValueError) as error:
                broken.append(error)

    try:
        clients = [threading.Thread(target=client) for _ in range(8)]
        for each in clients:
            each.start()
        time.sleep(1.0)
        code, seconds = one.stop()
        for each in clients:
            each.join(20)
        assert code == 0 and seconds < 10 and len(whole) > 8 and not broken, broken
    finally:
        one.process.kill()


def test_in_a_thread_it_goes_on_until_it_is_told_to_stop(run, photos):
    stop, lines = threading.Event(), []
    watcher = type("Told", (burnish.Lines,), {"say": lambda self, text: lines.append(text)})()
    thread = threading.Thread(
        target=burnish.serve, args=[run.folder], kwargs={"port": 0, "stop": stop, "watcher": watcher, "log": False}
    )
    thread.start()
    while not lines:
        time.sleep(0.05)
    client = http.client.HTTPConnection("127.0.0.1", int(re.search(r":(\d+)/", lines[0])[1]), timeout=30)
    client.request("POST", "/predict?top=3", photos[0])
    assert json.loads(client.getresponse().read()) == told(run, [photos[0]], ["image"], top=3)
    stop.set()
    thread.join(10)
    assert not thread.is_alive() and lines[1:] == ["stopped"]


def test_where_an_event_loop_runs_it_says_how_to_start_it_beside(run):
    async def cell():
        burnish.serve(run.folder, port=0)

    with pytest.raises(RunError, match=r"as in a notebook; start it beside: .*kwargs=\{'stop': stop\}"):
        asyncio.run(cell())


def test_whoever_may_ask_is_said_where_it_is_not_this_machine_alone(run):
    with bound("0.0.0.0", 0) as everywhere, bound("127.0.0.1", 0) as here:
        assert own_names(everywhere, "0.0.0.0", ()) is None and own_names(everywhere, "0.0.0.0", ("a.example",)) == (
            "a.example",
        )
        assert {"localhost", "127.0.0.1", "::1", "b.example"} <= set(own_names(here, "127.0.0.1", ("b.example",)))


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="the limit of another process is Linux's to set")
def test_a_system_that_gives_no_more_connections_is_a_line_and_the_service_goes_on(run, photos):
    one = Server(run.folder, fewest_files=40)
    try:
        idle = [socket.create_connection(("127.0.0.1", one.port), timeout=8) for _ in range(60)]
        time.sleep(1.0)
        for client in idle:
            client.close()
        time.sleep(1.5)
        assert one.ask("POST", "/predict", photos[0])[0] == 200
        assert "Traceback" not in "".join(one.lines) and any("Too many open files" in line for line in one.lines)
    finally:
        one.process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_service_finishes_what_is_in_work(run, photos, number):
    """The body of one request comes to its end after the signal, and is answered."""
    one = Server(run.folder)
    try:
        head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(photos[0])}\r\n\r\n".encode()
        with socket.create_connection(("127.0.0.1", one.port), timeout=15) as client:
            client.sendall(head + photos[0][:100])
            time.sleep(0.3)
            one.process.send_signal(number)
            time.sleep(0.5)
            client.sendall(photos[0][100:])
            assert b" 200 " in received(client).splitlines()[0]
        assert one.process.wait(timeout=10) == 0
        one.reading.join(5)
        assert one.lines[-1].endswith("stopped\n") and "Traceback" not in "".join(one.lines)
    finally:
        one.process.kill()


def test_a_sender_who_does_not_end_does_not_keep_a_stopped_service(run):
    one = Server(run.folder)
    try:
        with socket.create_connection(("127.0.0.1", one.port), timeout=15) as client:
            client.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nabc")
            time.sleep(0.3)
            code, seconds = one.stop()
        assert code == 0 and seconds < 10 and "Traceback" not in "".join(one.lines)
    finally:
        one.process.kill()


def test_a_second_ctrl_c_ends_it_at_once(run):
    one = Server(run.folder)
    try:
        with socket.create_connection(("127.0.0.1", one.port), timeout=15) as client:
            client.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nabc")
            time.sleep(0.3)
            one.process.send_signal(signal.SIGINT)
            time.sleep(0.5)
            code, seconds = one.stop(signal.SIGINT)
        assert code == 130 and seconds < 2 and "Traceback" not in "".join(one.lines)
    finally:
        one.process.kill()


def test_a_network_that_fails_is_told_as_unforeseen_and_the_log_says_what_it_was(run, photos, monkeypatch):
    from starlette.testclient import TestClient

    from burnish.ship.serve import application

    told = []
    watcher = type("Told", (burnish.Lines,), {"say": lambda self, text: told.append(text)})()
    with TestClient(application(run.folder, watcher=watcher)) as client, monkeypatch.context() as patched:
        patched.setattr(Predictor, "of_pixels", lambda self, pixels: 1 / 0)
        answer = client.post("/predict", content=photos[0])
        assert (answer.status_code, answer.json()) == (
            500,
            {"error": "something unforeseen happened; the service's log says what kind"},
        )
        assert "ZeroDivisionError" in told[-1]
        patched.undo()
        assert client.post("/predict", content=photos[0]).status_code == 200
