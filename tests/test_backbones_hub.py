"""Promises of backbones.hub against a small web server on this machine, which speaks as the hub does and can misbehave."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import io
import itertools
import json
import os
import pickle
import socket
import subprocess
import sys
import textwrap
import threading
import time
import urllib.parse
from concurrent.futures import ThreadPoolExecutor

import pytest
import safetensors.torch
import timm
import torch
from huggingface_hub import constants, file_download
from huggingface_hub.utils import _http, close_session
from test_backbones_transformers import resnet_of_transformers, small_network

from burnish.backbones.reading import addresses, weights
from burnish.backbones.zoo import load_backbone
from burnish.disk import MAX_JSON_BYTES
from burnish.errors import BadWeights, ModelError, UnknownModel, WeightsUnreachable

torch.set_num_threads(1)

PATIENCE = 15.0  # seconds after which a server that says nothing must have been given up
TOLD = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "input_size": [3, 96, 96], "crop_pct": 1.0}
CONFIG = {"architecture": "test_resnet", "num_classes": 5, "pretrained_cfg": TOLD}
GIVEN = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(1))


# ---- the server ------------------------------------------------------------------------------------------------------


class Web(http.server.ThreadingHTTPServer):
    """Files by path; `seen` are the requests, `troubles` what goes wrong at the next ones of a method and path."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.files, self.headers, self.troubles, self.seen = {}, {}, {}, []
        self.knows_ranges, self.over = True, threading.Event()

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request, client_address):
        pass  # the client left: many tests want just that

    def offer(self, repository, revision="main", commit=None, **files):
        """Files of a repository, model_safetensors=… for model.safetensors; large ones are known by their SHA-256."""
        commit = commit or hashlib.sha1(f"{repository} {revision}".encode()).hexdigest()
        for name, content in files.items():
            file = name if "." in name else {
                "config": "config.json", "safetensors": "model.safetensors", "pytorch": "pytorch_model.bin",
            }[name]  # fmt: skip
            path = self.path(repository, file, revision)
            content = json.dumps(content).encode() if isinstance(content, dict) else content
            if file == "config.json":
                headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
            else:
                digest = hashlib.sha256(content).hexdigest()
                headers = {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": len(content), "ETag": '"of-the-storage"'}
            self.files[path], self.headers[path] = content, {"X-Repo-Commit": commit, **headers}

    @staticmethod
    def path(repository, file, revision="main"):
        return f"/{repository}/resolve/{urllib.parse.quote(revision, safe='')}/{file}"

    def asked(self, method, part=""):
        return [one for one in self.seen if one[0] == method and part in one[1]]


class Answer(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.reply(body=False)

    def do_GET(self):
        self.reply(body=True)

    def reply(self, body):
        span = self.headers.get("Range")
        self.server.seen.append((self.command, self.path, span))
        trouble = next(self.server.troubles.get((self.command, self.path), iter(())), None)
        content = self.server.files.get(self.path)
        start = int(span.removeprefix("bytes=").rstrip("-")) if span and self.server.knows_ranges else 0
        if trouble is not None:
            trouble(self, content, start)
        elif self.path == "/":
            self.head(200, {"Content-Length": 0})
        elif content is None:
            repository, _, rest = self.path.removeprefix("/").partition("/resolve/")
            known = [path for path in self.server.files if path.startswith(f"/{repository}/resolve/")]
            here = [path for path in known if path.startswith(f"/{repository}/resolve/{rest.partition('/')[0]}/")]
            code = "EntryNotFound" if here else "RevisionNotFound" if known else "RepoNotFound"
            more = {"X-Repo-Commit": self.server.headers[here[0]]["X-Repo-Commit"]} if here else {}
            self.head(404, {"X-Error-Code": code, "X-Error-Message": code, "Content-Length": 0, **more})
        elif start and start >= len(content):
            self.head(416, {"Content-Length": 0})
        else:
            self.begin(content, start)
            if body:
                self.wfile.write(content[start:])

    def begin(self, content, start):
        more = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
        self.head(206 if start else 200, {
            "Content-Length": len(content) - start, **more, **self.server.headers.get(self.path, {}),
        })  # fmt: skip

    def head(self, status, headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()


def dropped(after):
    """The connection breaks when that many bytes more have come."""

    def trouble(answer, content, start):
        answer.begin(content, start)
        answer.wfile.write(content[start : start + after])

    return trouble


def stuck(at):
    """Nothing behind this place of the file ever comes."""

    def trouble(answer, content, start):
        answer.begin(content, start)
        answer.wfile.write(content[start:at])

    return trouble


def status(code, **headers):
    return lambda answer, content, start: answer.head(
        code, {"Content-Length": 0, **{name.replace("_", "-"): value for name, value in headers.items()}}
    )


def instead(content):
    def trouble(answer, _, start):
        answer.begin(content, 0)
        answer.wfile.write(content)

    return trouble


def raw(text):
    return lambda answer, content, start: answer.wfile.write(text)


def silence(after=None):
    """Says nothing more until the test is over."""

    def trouble(answer, content, start):
        if after is not None:
            answer.begin(content, start)
            answer.wfile.write(content[start : start + after])
        answer.server.over.wait(60)

    return trouble


always = itertools.repeat


@contextlib.contextmanager
def serving():
    server = Web()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        server.server_close()


class Clock:
    """The module `time`, but for its sleep, which only counts."""

    def __init__(self):
        self.slept = 0.0

    def sleep(self, seconds):
        self.slept += seconds

    def __getattr__(self, name):
        return getattr(time, name)


# ---- fixtures --------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """Nobody waits before trying again."""
    clock = Clock()
    for module in (addresses, _http, file_download):
        monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
def web(monkeypatch, tmp_path):
    """A server that is the hub, and empty caches."""
    with serving() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 16)  # what a broken connection can lose
        for name, value in {"BURNISH_CACHE": str(tmp_path / "own"), "NO_PROXY": "127.0.0.1", "HF_TOKEN": ""}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("HF_HUB_OFFLINE")
        close_session()
        yield server
        close_session()


@pytest.fixture
def offline(monkeypatch, web):
    def switch():
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        web.seen.clear()

    return switch


def network(seed):
    torch.manual_seed(seed)
    module = timm.create_model("test_resnet", num_classes=5).eval()
    for name, buffer in module.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 2.0)
    return module


@pytest.fixture(scope="module")
def source():
    return network(3)


@pytest.fixture(scope="module")
def safetensors_file(source):
    return safetensors.torch.save(source.state_dict())


@pytest.fixture(scope="module")
def torch_file(source):
    stream = io.BytesIO()
    torch.save(source.state_dict(), stream)
    return stream.getvalue()


@pytest.fixture
def model(web, safetensors_file):
    """hf-hub:someone/model, as timm's push_to_hf_hub writes it; gives the path of its weights on the server."""
    web.offer("someone/model", config=CONFIG, safetensors=safetensors_file)
    return web.path("someone/model", "model.safetensors")


def assert_features(backbone, source):
    with torch.no_grad():
        expected = source.global_pool(source.forward_features(GIVEN))
        assert torch.equal(backbone.module(GIVEN), expected)


def left_in(folder):
    """The files with content in a cache."""
    skipped = (".locks", "refs", ".no_exist", "CACHEDIR.TAG")
    return [path for path in folder.rglob("*") if path.is_file() and not set(skipped) & set(path.parts)]


def assert_a_sentence(error):
    text = str(error.value)
    assert text.isprintable() and 20 < len(text) < 700 and "Traceback" not in text, text


# ---- a model on the hub ----------------------------------------------------------------------------------------------


def test_a_model_on_the_hub_gives_the_features_of_its_source_and_the_preprocessing_of_its_config(web, model, source):
    backbone = load_backbone("hf-hub:someone/model")
    assert_features(backbone, source)
    assert (backbone.name, backbone.source) == ("test_resnet", "hf-hub:someone/model")
    assert backbone.sha256 == hashlib.sha256(web.files[model]).hexdigest()
    preprocess = backbone.preprocess
    assert (preprocess.size, preprocess.crop, preprocess.interpolation) == (96, 1.0, "bilinear")
    assert (preprocess.mean, preprocess.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_the_second_time_nothing_is_asked_for(web, model, source):
    load_backbone("hf-hub:someone/model")
    assert len(web.asked("GET", "model.safetensors")) == 1
    web.seen.clear()
    assert_features(load_backbone("hf-hub:someone/model"), source)
    assert web.seen == []


@pytest.mark.parametrize("revision", ["v2", "refs/pr/1", "0123456789abcdef0123456789abcdef01234567"])
def test_a_revision_is_the_one_that_is_asked_for(web, model, source, revision):
    other = network(4)
    commit = revision if len(revision) == 40 else None
    web.offer("someone/model", revision, commit, config=CONFIG, safetensors=safetensors.torch.save(other.state_dict()))
    for _ in range(2):
        assert_features(load_backbone("hf-hub:someone/model"), source)
        backbone = load_backbone(f"hf-hub:someone/model@{revision}")
        assert_features(backbone, other)
        assert backbone.source == f"hf-hub:someone/model@{revision}"
    assert len(web.asked("GET", "model.safetensors")) == 2


@pytest.mark.parametrize("told", [None, {"size": {"shortest_edge": 160}, "crop_pct": 0.9, "resample": 2}])
def test_a_model_of_transformers_on_the_hub_is_read_with_its_preprocessor(told, web):
    network = small_network("resnet18")
    files = {"config": {"model_type": "resnet", "architectures": ["ResNetForImageClassification"]}}
    if told is not None:
        files["preprocessor_config.json"] = told
    renamed = {name: one.contiguous() for name, one in resnet_of_transformers(network.state_dict()).items()}
    web.offer("someone/theirs", safetensors=safetensors.torch.save(renamed), **files)
    backbone = load_backbone("hf-hub:someone/theirs")
    assert (backbone.name, backbone.source) == ("resnet18", "hf-hub:someone/theirs")
    found = backbone.preprocess
    expected = (224, 0.875, "bicubic") if told is None else (160, 0.9, "bilinear")
    assert (found.size, found.crop, found.interpolation) == expected
    with torch.no_grad():
        assert torch.allclose(backbone.module(GIVEN), network(GIVEN), atol=1e-4)


def test_a_name_of_timm_needs_the_weights_alone(web, source, safetensors_file):
    web.offer("timm/test_resnet.r160_in1k", safetensors=safetensors_file)
    backbone = load_backbone("test_resnet")
    assert_features(backbone, source)
    assert (backbone.name, backbone.source, backbone.preprocess.size) == ("test_resnet.r160_in1k", "hub", 160)
    assert web.asked("GET", "config.json") == []


def test_a_name_of_timm_whose_repository_has_no_weights_says_how_to_bring_them(web):
    web.offer("timm/test_resnet.r160_in1k", config=CONFIG)
    with pytest.raises(WeightsUnreachable, match=r"has no model\.safetensors.*hf download") as error:
        load_backbone("test_resnet")
    assert_a_sentence(error)


def test_a_pickle_alone_is_read_and_again_without_a_network(web, offline, source, torch_file):
    web.offer("someone/model", config=CONFIG, pytorch=torch_file)
    assert_features(load_backbone("hf-hub:someone/model"), source)
    offline()
    assert_features(load_backbone("hf-hub:someone/model"), source)
    assert web.seen == []


def in_several(state, end):
    """The weights as transformers keeps large ones: two files, and the index that names them."""
    names, whole = list(state), "model" if end == "safetensors" else "pytorch_model"
    held = {f"{whole}-00001-of-00002.{end}": names[:9], f"{whole}-00002-of-00002.{end}": names[9:]}
    files = {}
    for file, own in held.items():
        stream, tensors = io.BytesIO(), {name: state[name] for name in own}
        torch.save(tensors, stream)
        files[file] = safetensors.torch.save(tensors) if end == "safetensors" else stream.getvalue()
    told = {"weight_map": {name: file for file, own in held.items() for name in own}}
    return files, {f"{whole}.{end}.index.json": told}


@pytest.mark.parametrize("end", ["safetensors", "bin"])
def test_weights_in_several_files_come_whole_and_again_without_a_network(web, offline, source, end):
    files, index = in_several(source.state_dict(), end)
    web.offer("someone/model", config=CONFIG, **files, **index)
    assert_features(load_backbone("hf-hub:someone/model"), source)
    assert {len(web.asked("GET", file)) for file in files} == {1}
    offline()
    assert_features(load_backbone("hf-hub:someone/model"), source)
    assert web.seen == []


def test_weights_of_which_a_file_is_missing_say_which(web, offline, source):
    files, index = in_several(source.state_dict(), "safetensors")
    last = files.popitem()[0]
    web.offer("someone/model", config=CONFIG, **files, **index)
    with pytest.raises(
        WeightsUnreachable, match=rf"weights are not whole: it has no {last}, which .*index.json"
    ) as error:
        load_backbone("hf-hub:someone/model")
    assert_a_sentence(error)
    offline()
    with pytest.raises(WeightsUnreachable, match="in 2 files, and file 2 is not in the cache") as error:
        load_backbone("hf-hub:someone/model")
    assert_a_sentence(error)


@pytest.mark.parametrize(
    "file", ["../../model.safetensors", "https://127.0.0.1/model.safetensors", "a/model.safetensors"]
)
def test_an_index_on_the_hub_names_files_beside_it_alone(web, file):
    index = {"model.safetensors.index.json": {"weight_map": {"a": file}}}
    web.offer("someone/model", config=CONFIG, **index)
    with pytest.raises(BadWeights, match=r"expected the name of a \.safetensors or \.bin file in the same folder"):
        load_backbone("hf-hub:someone/model")
    assert len(web.asked("GET")) == 2


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_on_the_hub_that_would_run_code_is_refused(web, tmp_path):
    trace = tmp_path / "ran"
    web.offer("someone/model", config=CONFIG, pytorch=pickle.dumps({"conv1.weight": Hostile(trace)}))
    with pytest.raises(BadWeights, match="mkdir") as error:
        load_backbone("hf-hub:someone/model")
    assert_a_sentence(error)
    assert not trace.exists()


# ---- broken connections ----------------------------------------------------------------------------------------------


def test_a_connection_that_breaks_twice_is_taken_up_where_it_broke(web, model, source):
    web.troubles["GET", model] = iter([dropped(300_000), dropped(300_000)])
    assert_features(load_backbone("hf-hub:someone/model"), source)
    spans = [span for _, _, span in web.asked("GET", "model.safetensors")]
    starts = [int(span.removeprefix("bytes=").rstrip("-")) for span in spans[1:]]
    assert spans[0] is None and len(starts) == 2
    assert 200_000 < starts[0] <= 300_000 and starts[0] + 200_000 < starts[1] <= 600_000


def test_a_hub_without_ranges_begins_again(web, model, source):
    web.knows_ranges = False
    web.troubles["GET", model] = iter([dropped(300_000), dropped(500_000)])
    assert_features(load_backbone("hf-hub:someone/model"), source)


def test_a_file_that_never_comes_whole_is_given_up_and_nothing_half_made_is_used(web, model, source, tmp_path):
    web.troubles["GET", model] = always(stuck(300_000))
    with pytest.raises(WeightsUnreachable, match=r"^hf-hub:someone/model: its weights are not here") as error:
        load_backbone("hf-hub:someone/model")
    assert_a_sentence(error)
    assert [path.name for path in left_in(tmp_path / "hf") if path.stat().st_size > 1000] == []
    web.troubles.clear()
    assert_features(load_backbone("hf-hub:someone/model"), source)


@pytest.mark.parametrize(("method", "code"), [("HEAD", 429), ("HEAD", 503), ("GET", 429)])
def test_a_hub_that_is_busy_for_a_moment_is_asked_again(web, model, source, method, code):
    web.troubles[method, model] = iter([status(code), status(code)])
    assert_features(load_backbone("hf-hub:someone/model"), source)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("method", ["HEAD", "GET"])
@pytest.mark.parametrize("code", [403, 429, 500])
def test_a_hub_that_always_refuses_is_given_up_in_a_sentence(web, model, clock, file, method, code):
    web.troubles[method, web.path("someone/model", file)] = always(status(code))
    with pytest.raises(ModelError, match=r"^hf-hub:someone/model: ") as error:
        load_backbone("hf-hub:someone/model")
    assert_a_sentence(error)
    assert clock.slept < 60


@pytest.mark.parametrize("method", ["HEAD", "GET"])
@pytest.mark.parametrize("said", [b"", b"garbage\r\n\r\n"], ids=["nothing", "garbage"])
def test_a_hub_that_does_not_speak_http_is_given_up_in_a_sentence(web, model, method, said):
    web.troubles[method, model] = always(raw(said))
    with pytest.raises(WeightsUnreachable) as error:
        load_backbone("hf-hub:someone/model")
    assert_a_sentence(error)


def test_a_proxy_that_answers_with_a_web_page_is_no_hub(web, model):
    page = b"<html>Please sign in</html>"
    for path in web.files:
        for method in ("HEAD", "GET"):
            web.troubles[method, path] = always(
                raw(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(page), page * (method == "GET")))
            )
    with pytest.raises(WeightsUnreachable, match=r"^hf-hub:someone/model: its config\.json") as error:
        load_backbone("hf-hub:someone/model")
    assert_a_sentence(error)


def test_a_hub_that_accepts_and_says_nothing_is_given_up_soon(web, model):
    web.troubles["HEAD", "/"] = always(silence())
    started = time.monotonic()
    with pytest.raises(WeightsUnreachable, match="cannot be reached") as error:
        load_backbone("hf-hub:someone/model")
    assert time.monotonic() - started < PATIENCE
    assert_a_sentence(error)


# ---- contents that are not what they should be -----------------------------------------------------------------------


def changed(content):
    return content[:-1] + bytes([content[-1] ^ 1])


def test_bytes_that_are_not_those_of_the_hash_are_refused_every_time(web, model, safetensors_file):
    web.troubles["GET", model] = always(instead(changed(safetensors_file)))
    for _ in range(2):
        with pytest.raises(BadWeights, match="SHA-256 differs") as error:
            load_backbone("hf-hub:someone/model")
        assert_a_sentence(error)


def test_a_damaged_file_is_deleted_and_a_good_one_is_fetched_the_next_time(web, model, source, safetensors_file):
    web.troubles["GET", model] = iter([instead(changed(safetensors_file))])
    with pytest.raises(BadWeights, match="is deleted; run again"):
        load_backbone("hf-hub:someone/model")
    assert_features(load_backbone("hf-hub:someone/model"), source)


def test_a_file_above_the_limit_is_refused_before_it_comes(web, model):
    huge = weights.MAX_WEIGHTS_BYTES + 1
    web.headers[model] |= {"X-Linked-Size": huge}
    web.troubles["GET", model] = always(raw(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % huge))
    with pytest.raises(ModelError) as error:
        load_backbone("hf-hub:someone/model")
    assert_a_sentence(error)
    assert web.asked("GET", "model.safetensors") == []


def test_a_model_of_transformers_is_named_and_says_how_to_go_on(web, safetensors_file):
    told = {"architectures": ["PvtForImageClassification"], "model_type": "pvt"}
    web.offer("someone/pvt-tiny", config=told, safetensors=safetensors_file)
    with pytest.raises(UnknownModel, match=r"hf-hub:someone/pvt-tiny: .*PvtForImageClassification.*--arch") as error:
        load_backbone("hf-hub:someone/pvt-tiny")
    assert_a_sentence(error)


def told(**values):
    return json.dumps({**CONFIG, "pretrained_cfg": {**TOLD, **values}}).encode()


HOSTILE_CONFIGS = {
    "an empty file": b"",
    "no json": b"architecture: resnet18",
    "no text": b"\xff\xfe\x00\x01",
    "a web page": b"<html></html>",
    "a list": b"[1, 2]",
    "nested too deeply": b"[" * 100_000,
    "too large": b'{"architecture": "test_resnet", "x": "' + b"x" * MAX_JSON_BYTES + b'"}',
    "not a number": b'{"architecture": "test_resnet", "mean": NaN}',
    "two architectures": b'{"architecture": "test_resnet", "architecture": "resnet18"}',
    "an unknown architecture": b'{"architecture": "resnet18; rm -rf /"}',
    "a repository for an architecture": b'{"architecture": "hf-hub:evil/model"}',
    "control characters": b'{"architecture": "a\\u001b[0m"}',
    "control characters elsewhere": b'{"architectures": ["a\\u001b[0m"]}',
    "no name": b'{"architecture": ""}',
    "another architecture": b'{"architecture": "vit_tiny_patch16_224"}',
    "a number for an architecture": b'{"architecture": 5}',
    "a number of architectures": b'{"architectures": 5}',
    "a truth for architectures": b'{"architectures": true}',
    "a list for a kind": b'{"model_type": ["x", {"y": 1}]}',
    "a mean that is text": told(mean="abc"),
    "a mean that is a number": told(mean=0.5),
    "a mean without end": told(mean=[0.1, 0.2, 0.3]).replace(b"0.1", b"1e999"),
    "a mean of many digits": told(mean=[10**400, 0, 0]),
    "a spread of nothing": told(std=[0, 0, 0]),
    "a spread of two": told(std=[1, 1]),
    "no size": told(input_size=[]),
    "a huge size": told(input_size=[3, 10**9, 10**9]),
    "a size without end": told(input_size=[3, 0, 0]).replace(b"3, 0, 0", b"3, 1e999, 1e999"),
    "half a pixel": told(input_size=[3, 96.5, 96.5]),
    "no pixels": told(input_size=[3, 0, 0]),
    "a size by name": told(input_size={"a": 1, "b": 2, "c": 3}),
    "a crop of text": told(crop_pct="all"),
    "a crop of nothing": told(crop_pct=0),
    "a crop of many digits": told(crop_pct=10**400),
    "an unknown interpolation": told(interpolation="evil"),
    "a list for an interpolation": told(interpolation=["bicubic"]),
    "a list for a crop mode": told(crop_mode=["center"]),
}


@pytest.mark.parametrize("kind", HOSTILE_CONFIGS)
def test_a_config_that_is_not_what_it_should_be_is_refused_in_a_sentence(web, safetensors_file, kind):
    web.offer("someone/model", config=HOSTILE_CONFIGS[kind], safetensors=safetensors_file)
    with pytest.raises(ModelError) as error:
        load_backbone("hf-hub:someone/model")
    assert_a_sentence(error)


@pytest.mark.parametrize(
    "cfg", [5, "x", [1], None, {"tag": ["x"]}, {"tag": "../../x"}, {"url": "http://example.com/x"}]
)
def test_what_a_config_says_beyond_the_image_settings_does_no_harm(web, source, safetensors_file, cfg):
    web.offer("someone/model", config={**CONFIG, "pretrained_cfg": cfg}, safetensors=safetensors_file)
    backbone = load_backbone("hf-hub:someone/model")
    assert_features(backbone, source)
    assert backbone.preprocess.size == 160
    assert {path for _, path, _ in web.seen} <= {"/", *web.files}


def test_an_architecture_with_its_tag_in_the_config_is_that_model(web, source, safetensors_file):
    web.offer("someone/model", config={"architecture": "test_resnet.r160_in1k"}, safetensors=safetensors_file)
    assert_features(load_backbone("hf-hub:someone/model"), source)


# ---- not there -------------------------------------------------------------------------------------------------------


def test_a_repository_that_is_not_there_is_no_known_model(web, model):
    with pytest.raises(UnknownModel, match=r"hf-hub:no/body: no such repository") as error:
        load_backbone("hf-hub:no/body")
    assert_a_sentence(error)


@pytest.mark.parametrize(
    "answer",
    [
        status(401, X_Error_Code="RepoNotFound"),
        status(403, X_Error_Code="GatedRepo"),
    ],
    ids=["private", "gated"],
)
def test_a_repository_that_asks_for_a_login_says_how(web, model, answer):
    for path in web.files:
        web.troubles["HEAD", path] = always(answer)
    with pytest.raises(ModelError, match="hf auth login") as error:
        load_backbone("hf-hub:someone/model")
    assert_a_sentence(error)


def test_a_revision_that_is_not_there_is_named(web, model):
    with pytest.raises(UnknownModel, match="v9") as error:
        load_backbone("hf-hub:someone/model@v9")
    assert_a_sentence(error)


def test_a_repository_without_a_config_says_so(web, safetensors_file):
    web.offer("someone/model", safetensors=safetensors_file)
    with pytest.raises(WeightsUnreachable, match=r"hf-hub:someone/model: .* has no config\.json") as error:
        load_backbone("hf-hub:someone/model")
    assert_a_sentence(error)


def test_a_repository_without_weights_says_what_it_looked_for(web):
    web.offer("someone/model", config=CONFIG, **{"tf_model.h5": b"x"})
    with pytest.raises(WeightsUnreachable, match=r"none of model\.safetensors, pytorch_model\.bin") as error:
        load_backbone("hf-hub:someone/model")
    assert_a_sentence(error)


def test_offline_what_is_in_the_cache_works_and_the_rest_says_so(web, model, offline, source):
    load_backbone("hf-hub:someone/model")
    offline()
    assert_features(load_backbone("hf-hub:someone/model"), source)
    for name in ("hf-hub:someone/else", "hf-hub:someone/model@v2", "test_resnet", f"{web.address}/a#sha256={'0' * 64}"):
        with pytest.raises(WeightsUnreachable, match="HF_HUB_OFFLINE is set") as error:
            load_backbone(name)
        assert_a_sentence(error)
    assert web.seen == []


ODD_NAMES = [
    "hf-hub:", "hf-hub:/", "hf-hub:model", "hf-hub:a/b/c", "hf-hub:a/b?x=1", "hf-hub:a/b#c", "hf-hub:a/b@", "hf-hub:a b/c",
    "hf-hub:a/b%2Fc", "hf-hub:a/b\n", "hf-hub:a/\x1b[0m", "hf-hub:a/b\\c", "hf-hub:http://127.0.0.1/a", "hf-hub:a/b@v 1",
    "hf-hub:../etc", "hf-hub:a/..", "hf-hub:./.", "hf-hub:-a/b", "hf-hub:a--b/c", "hf-hub:a/b.git", "hf-hub:ä/ö",
    "hf-hub:a/" + "b" * 200, "hf-hub:a/b@../../../x", "hf-hub:a/b@/x", "hf-hub:a/b@x/../y",
]  # fmt: skip


@pytest.mark.parametrize("name", ODD_NAMES, ids=lambda name: ascii(name[:40]))
def test_a_name_with_odd_characters_is_refused_without_a_request(web, name):
    with pytest.raises(UnknownModel) as error:
        load_backbone(name)
    assert_a_sentence(error)
    assert web.seen == []


def test_a_revision_cannot_write_outside_the_cache(web, tmp_path, safetensors_file):
    revision = "../../../outside"
    web.offer("someone/model", revision, config=CONFIG, safetensors=safetensors_file)
    with contextlib.suppress(ModelError):
        load_backbone(f"hf-hub:someone/model@{revision}")
    assert [path.name for path in tmp_path.iterdir() if path.name not in ("hf", "own")] == []


# ---- a plain address -------------------------------------------------------------------------------------------------


@pytest.fixture
def file(web, safetensors_file):
    """The address of a file on the server, its hash in it."""
    web.files["/file.safetensors"] = safetensors_file
    return f"{web.address}/file.safetensors#sha256={hashlib.sha256(safetensors_file).hexdigest()}"


def assert_nothing_kept(tmp_path):
    assert left_in(tmp_path / "own") == []


@pytest.mark.parametrize("arch", [None, "test_resnet"])
def test_a_file_from_an_address_is_the_source_and_its_address_is_kept(web, file, source, arch):
    web.files["/config.json"] = json.dumps({"architecture": "resnet18"}).encode()
    backbone = load_backbone(file, arch=arch)
    assert_features(backbone, source)
    assert (backbone.name, backbone.source) == ("test_resnet", file.partition("#")[0])
    assert backbone.sha256 == file[-64:]
    assert web.seen == [("GET", "/file.safetensors", None)]  # and nothing beside it


def test_the_second_time_an_address_is_not_asked(web, file, source, offline):
    load_backbone(file)
    offline()
    assert_features(load_backbone(file), source)
    assert_features(load_backbone(file[:-64] + file[-64:].upper()), source)
    assert web.seen == []


def test_a_cached_file_that_was_damaged_is_fetched_again(web, file, source, tmp_path):
    load_backbone(file)
    (cached,) = left_in(tmp_path / "own")
    cached.write_bytes(changed(cached.read_bytes()))
    assert_features(load_backbone(file), source)
    assert len(web.seen) == 2


@pytest.mark.parametrize("fragment", ["", "#", "#sha256=", "#sha256=12", "#sha256=" + "g" * 64, "#md5=" + "0" * 32])
def test_an_address_without_a_hash_is_refused_without_a_request(web, file, fragment):
    with pytest.raises(UnknownModel, match="SHA-256") as error:
        load_backbone(file.partition("#")[0] + fragment)
    assert_a_sentence(error)
    assert web.seen == []


def test_a_file_with_another_hash_is_refused_and_not_kept(web, file, tmp_path):
    for _ in range(2):
        with pytest.raises(BadWeights, match=f"SHA-256 {file[-64:]}, expected {'0' * 64}") as error:
            load_backbone(file[:-64] + "0" * 64)
        assert_a_sentence(error)
        assert_nothing_kept(tmp_path)
    assert len(web.seen) == 2


def test_a_download_that_breaks_twice_is_taken_up_where_it_broke(web, file, source):
    web.troubles["GET", "/file.safetensors"] = iter([dropped(300_000), raw(b""), dropped(300_000)])
    assert_features(load_backbone(file), source)
    assert [span for _, _, span in web.seen] == [None, "bytes=300000-", "bytes=300000-", "bytes=600000-"]


def test_a_server_without_ranges_begins_again(web, file, source):
    web.knows_ranges = False
    web.troubles["GET", "/file.safetensors"] = iter([dropped(300_000), dropped(200_000)])
    assert_features(load_backbone(file), source)
    assert [span for _, _, span in web.seen] == [None, "bytes=300000-", "bytes=200000-"]


def test_a_server_without_ranges_that_breaks_at_any_place_is_given_up(web, file, tmp_path):
    web.knows_ranges = False
    web.troubles["GET", "/file.safetensors"] = itertools.islice(itertools.cycle([dropped(1000), dropped(2000)]), 60)
    with pytest.raises(WeightsUnreachable) as error:
        load_backbone(file)
    assert_a_sentence(error)
    assert_nothing_kept(tmp_path)


NEVER_COMES = {
    "stuck": stuck(300_000),
    "500": status(500),
    "429": status(429),
    "closes": raw(b""),
    "garbage": raw(b"garbage\r\n\r\n"),
    "half a header": raw(b"HTTP/1.0 200 OK\r\nno header"),
    "chunks broken off": raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffff\r\nbroken off"),
    "chunks without sizes": raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnot hex\r\n"),
    "a length that is no number": raw(b"HTTP/1.0 200 OK\r\nContent-Length: many\r\n\r\nabc"),
    "too many headers": raw(b"HTTP/1.0 200 OK\r\n" + b"A: b\r\n" * 200 + b"\r\nabc"),
    "a header too long": raw(b"HTTP/1.0 200 OK\r\nA: " + b"b" * 100_000 + b"\r\n\r\nabc"),
}


@pytest.mark.parametrize("kind", NEVER_COMES)
def test_a_file_that_never_comes_is_given_up_in_a_sentence_and_the_next_process_goes_on(
    web, file, source, tmp_path, kind
):
    web.troubles["GET", "/file.safetensors"] = itertools.islice(always(NEVER_COMES[kind]), 60)
    with pytest.raises(ModelError) as error:
        load_backbone(file)
    assert_a_sentence(error)
    part = [path.name for path in left_in(tmp_path / "own")]
    assert part == ([".file.safetensors.part"] if kind == "stuck" else []), "what came of it is gone on with"
    web.troubles.clear()
    web.seen.clear()
    assert_features(load_backbone(file), source)
    assert [span for _, _, span in web.seen] == ["bytes=300000-" if part else None]
    assert [path.name for path in left_in(tmp_path / "own")] == ["file.safetensors"]


@pytest.mark.parametrize("code", [401, 403, 404, 410])
def test_a_file_that_is_refused_is_asked_for_once(web, file, code, tmp_path):
    web.troubles["GET", "/file.safetensors"] = always(status(code))
    with pytest.raises(WeightsUnreachable, match=str(code)) as error:
        load_backbone(file)
    assert_a_sentence(error)
    assert len(web.seen) == 1
    assert_nothing_kept(tmp_path)


def test_a_server_that_is_busy_for_a_moment_is_asked_again(web, file, source):
    web.troubles["GET", "/file.safetensors"] = iter([status(429), status(503), status(500)])
    assert_features(load_backbone(file), source)


def test_a_redirect_on_this_machine_is_followed(web, file, source):
    web.troubles["GET", "/old"] = always(status(302, Location="/file.safetensors"))
    assert_features(load_backbone(file.replace("file.safetensors", "old")), source)


@pytest.mark.parametrize("to", ["http://example.invalid/file", "ftp://example.invalid/file", "file:///etc/passwd"])
def test_a_redirect_to_another_machine_without_https_is_not_followed(web, file, monkeypatch, to, tmp_path):
    hosts = []

    def watched(lookup):
        def look(host, *args, **kwargs):
            hosts.append(host)
            if host != "127.0.0.1":
                raise OSError("no network in this test")
            return lookup(host, *args, **kwargs)

        return look

    for name in ("getaddrinfo", "gethostbyname"):
        monkeypatch.setattr(socket, name, watched(getattr(socket, name)))
    web.troubles["GET", "/file.safetensors"] = always(status(302, Location=to))
    with pytest.raises(WeightsUnreachable) as error:
        load_backbone(file)
    assert_a_sentence(error)
    assert set(hosts) == {"127.0.0.1"}
    assert_nothing_kept(tmp_path)


def test_redirects_without_end_are_given_up(web, file):
    web.troubles["GET", "/file.safetensors"] = always(status(302, Location="/file.safetensors"))
    with pytest.raises(WeightsUnreachable) as error:
        load_backbone(file)
    assert_a_sentence(error)


@pytest.mark.parametrize(
    "host",
    [
        "example.com",
        "192.0.2.1",
        "127.0.0.1.example.com",
        "localhost.example.com",
        "127.0.0.1@example.com",
        "0.0.0.0",
        "10.0.0.1",
    ],
)
def test_http_to_another_machine_is_refused_without_a_request(web, monkeypatch, host):
    monkeypatch.setattr(addresses.urllib.request, "build_opener", lambda *handlers: pytest.fail("asked the network"))
    with pytest.raises(UnknownModel, match="https://") as error:
        load_backbone(f"http://{host}/file.safetensors#sha256={'0' * 64}")
    assert_a_sentence(error)


ODD_ADDRESSES = [
    "http://127.0.0.1:PORT/..", "http://127.0.0.1:PORT/.", "http://127.0.0.1:PORT/", "http://127.0.0.1:PORT",
    "http://127.0.0.1:PORT/a b", "http://127.0.0.1:PORT/a%00b", "http://127.0.0.1:PORT/ä", "http://127.0.0.1:PORT/a\x1b[0m",
    "http://127.0.0.1:PORT/%2e%2e%2fx", "http://127.0.0.1:PORT/" + "x" * 5000, "http://127.0.0.1:port/x",
    "http://127.0.0.1:99999/x", "http://[::1/x", "https://", "https:///x", "http://[127.0.0.1]:PORT/x",
]  # fmt: skip


@pytest.mark.parametrize("address", ODD_ADDRESSES, ids=lambda address: ascii(address[:40]))
def test_an_odd_address_is_refused_or_not_found_but_never_a_crash(web, tmp_path, address):
    address = address.replace("PORT", web.address.rpartition(":")[2])
    with pytest.raises(ModelError) as error:
        load_backbone(f"{address}#sha256={'0' * 64}")
    assert str(error.value).isprintable()
    assert_nothing_kept(tmp_path)


ODD_PATHS = ["/..", "/.", "/", "/config.json", "/%2e%2e", "/" + "x" * 300, "/weights.bin?token=%2Fa/b"]


@pytest.mark.parametrize("path", ODD_PATHS, ids=lambda path: path[:30])
def test_a_file_behind_an_odd_path_is_read_all_the_same(web, source, safetensors_file, path, tmp_path):
    web.files[path] = safetensors_file
    if path == "/":
        web.troubles["GET", "/"] = always(instead(safetensors_file))
    address = f"{web.address}{path}#sha256={hashlib.sha256(safetensors_file).hexdigest()}"
    for _ in range(2):
        assert_features(load_backbone(address), source)
    assert len(web.seen) == 1
    assert {path.parents[1] for path in left_in(tmp_path / "own")} == {tmp_path / "own" / "models"}


def part_of(tmp_path, file, content):
    """What an earlier process left of the file."""
    part = tmp_path / "own" / "models" / file[-64:] / ".file.safetensors.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(content)
    return part


@pytest.mark.parametrize(
    "kind", ["another file's", "all of it", "more than all of it", "another file's, without ranges"]
)
def test_what_an_earlier_process_left_is_used_only_where_it_is_of_this_file(
    kind, web, file, source, safetensors_file, tmp_path
):
    web.knows_ranges = "ranges" not in kind
    left = {"all of it": safetensors_file, "more than all of it": safetensors_file + bytes(9)}
    part_of(tmp_path, file, left.get(kind, bytes(300_000)))
    assert_features(load_backbone(file), source)
    assert [path.name for path in left_in(tmp_path / "own")] == ["file.safetensors"]
    asked = {"another file's": 2, "all of it": 1, "more than all of it": 2, "another file's, without ranges": 1}
    assert len(web.seen) == asked[kind]


def test_nothing_is_fetched_through_a_link(web, file, source, tmp_path):
    mine = tmp_path / "mine"
    mine.write_bytes(b"not to be touched")
    part = part_of(tmp_path, file, b"")
    part.unlink()
    part.symlink_to(mine)
    assert_features(load_backbone(file), source)
    assert mine.read_bytes() == b"not to be touched"


def test_whoever_looks_on_is_told_what_came_and_may_end_it(web, file, source, tmp_path):
    told = []

    def stop(came, size):
        told.append((came, size))
        if came:
            raise WeightsUnreachable("too slow")

    web.troubles["GET", "/file.safetensors"] = always(stuck(300_000))
    with pytest.raises(WeightsUnreachable, match="too slow"):
        load_backbone(file, on_bytes=stop)
    assert told[-1] == (300_000, len(web.files["/file.safetensors"]))
    assert [path.stat().st_size for path in left_in(tmp_path / "own")] == [300_000]


def test_whoever_looks_on_is_told_of_a_file_of_the_hub(web, model, source, safetensors_file):
    told = []

    def stop(came, size):
        told.append((came, size))
        if came:
            raise WeightsUnreachable("too slow")

    web.troubles["GET", model] = always(silence(300_000))
    with pytest.raises(WeightsUnreachable, match="too slow"):
        load_backbone("hf-hub:someone/model", on_bytes=stop)
    assert told[-1][0] > 0 and told[-1][1] == len(safetensors_file)


def test_two_at_once_both_get_the_file(web, file, source):
    together = threading.Barrier(2)

    def half(answer, content, start):
        answer.begin(content, start)
        answer.wfile.write(content[:300_000])
        answer.wfile.flush()
        together.wait(10)
        answer.wfile.write(content[300_000:])

    web.troubles["GET", "/file.safetensors"] = iter([half, half])
    with ThreadPoolExecutor(2) as pool:
        for path in [one.result() for one in [pool.submit(addresses.download, file) for _ in range(2)]]:
            assert weights.sha256_of(path) == file[-64:]


# ---- servers that hang, in real time ---------------------------------------------------------------------------------

SCRIPT = """
    import json, os, sys, threading, time
    from burnish.backbones.zoo import load_backbone
    from burnish.errors import BurnishError

    names, patience = json.loads(sys.argv[1]), float(sys.argv[2])
    found = {}

    def load(kind, name):
        started = time.monotonic()
        try:
            said = [load_backbone(name).name, ""]
        except BaseException as error:
            said = [type(error).__name__, str(error)]
        found[kind] = [*said, time.monotonic() - started]

    load("well", names.pop("well"))
    threads = [threading.Thread(target=load, args=one, daemon=True) for one in names.items()]
    for thread in threads:
        thread.start()
    until = time.monotonic() + patience
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    print(json.dumps(found), flush=True)
    os._exit(0)
"""


@pytest.fixture(scope="module", autouse=True)
def hanging(tmp_path_factory, safetensors_file):
    """Another process, set up by its environment alone, that meets hanging servers while the other tests run."""
    home = tmp_path_factory.mktemp("hanging")
    with serving() as server:
        names = {}
        for kind in ("well", "size", "weights", "later"):
            server.offer(f"someone/{kind}", config=CONFIG, safetensors=safetensors_file)
            names[kind] = f"hf-hub:someone/{kind}"
        server.troubles["HEAD", server.path("someone/size", "model.safetensors")] = always(silence())
        server.troubles["GET", server.path("someone/weights", "model.safetensors")] = always(silence(1000))
        server.troubles["GET", server.path("someone/later", "model.safetensors")] = always(
            status(429, Retry_After=3600)
        )
        server.files["/file"] = safetensors_file
        server.troubles["GET", "/file"] = always(silence(1000))
        names["address"] = f"{server.address}/file#sha256={hashlib.sha256(safetensors_file).hexdigest()}"
        environment = {key: value for key, value in os.environ.items() if key not in ("HF_HUB_OFFLINE", "HF_HUB_CACHE")}
        environment |= {
            "HF_ENDPOINT": server.address, "HF_HOME": str(home / "hf"), "BURNISH_CACHE": str(home / "own"),
            "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1", "HF_HUB_OFFLINE": "0",
        }  # fmt: skip
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(SCRIPT), json.dumps(names), str(PATIENCE)],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        found = {}

        def outcome(kind):
            if not found:
                out, err = process.communicate(timeout=60)
                assert process.returncode == 0, err
                found.update(json.loads(out))
            return found.get(kind)

        yield outcome
        process.kill()
        process.wait()


def test_the_environment_alone_names_another_hub_and_its_cache(hanging):
    assert hanging("well")[:2] == ["test_resnet", ""]


@pytest.mark.parametrize("kind", ["size", "weights", "later", "address"])
def test_a_server_that_hangs_in_the_midst_of_it_is_given_up(hanging, kind):
    outcome = hanging(kind)
    assert outcome is not None, f"still waiting after {PATIENCE:g} s"
    assert outcome[0] == "WeightsUnreachable" and outcome[1].isprintable()
