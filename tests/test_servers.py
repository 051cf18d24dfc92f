"""Servers that send slowly, without end or nothing: given up, but where they are merely slow; a full disk is told as one."""

from __future__ import annotations

import hashlib
import itertools
import os
import subprocess
import sys
import time
from typing import Any

import pytest
import safetensors.torch
from test_backbones_hub import (
    always,
    assert_a_sentence,
    clock,  # noqa: F401  (a fixture)
    silence,
    web,  # noqa: F401  (a fixture)
)

from burnish.backbones import zoo
from burnish.backbones.reading import addresses, hub
from burnish.data.sources import named, open_source
from burnish.errors import BurnishError, DataError, UnknownModel, WeightsUnreachable, brief


def now_and_then(beginning: bytes, *, every: float = 0.02, at_once: int = 1):
    """After this beginning of an answer, a few bytes now and then until the test is over."""

    def trouble(answer: Any, content: bytes, start: int) -> None:
        answer.wfile.write(beginning)
        for place in range(0, len(content), at_once):
            if answer.server.over.wait(every):
                return
            answer.wfile.write(content[place : place + at_once])

    return trouble


@pytest.fixture
def impatient(monkeypatch):
    """What a server must send in a while, and the while, made small."""
    monkeypatch.setattr(hub, "SILENT_SECONDS", 0.4)
    monkeypatch.setattr(addresses, "_PROGRESS", 100)


def address_of(server: Any, content: bytes, path: str = "/file") -> str:
    server.files[path] = content
    return f"{server.address}{path}#sha256={hashlib.sha256(content).hexdigest()}"


LENGTH = b"HTTP/1.0 200 OK\r\nContent-Length: 100000\r\n\r\n"


@pytest.mark.parametrize("begin", [LENGTH, b"HTTP/1.0 200 OK\r\n\r\n"], ids=["of a known length", "of none"])
def test_a_server_that_sends_a_byte_now_and_then_is_given_up(begin, web, impatient, tmp_path):  # noqa: F811
    address = address_of(web, bytes(200))  # four seconds
    web.troubles["GET", "/file"] = itertools.repeat(now_and_then(begin))
    began = time.monotonic()
    with pytest.raises(WeightsUnreachable, match=r"sends less than 100 bytes in 0\.4 s") as error:
        addresses.download(address)
    assert time.monotonic() - began < 5
    assert_a_sentence(error)
    assert not [path for path in (tmp_path / "own").rglob("*") if path.is_file()]


EARLIER = {
    "headers": b"HTTP/1.0 200 OK\r\nA: ",
    "lines between chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;",
}


@pytest.mark.parametrize("what", EARLIER)
def test_a_server_that_sends_other_things_than_content_now_and_then_is_given_up(what, web, impatient, monkeypatch):  # noqa: F811
    monkeypatch.setattr(addresses, "_TRIES", 1)
    address = address_of(web, bytes(75))
    web.troubles["GET", "/file"] = itertools.repeat(now_and_then(EARLIER[what]))  # 1.5 s, and again where it is asked
    began = time.monotonic()
    with pytest.raises(WeightsUnreachable):
        addresses.download(address)
    assert time.monotonic() - began < 1.2


GARBAGE = bytes(range(1, 10)) + bytes(range(14, 256))


@pytest.mark.parametrize("begin", [GARBAGE, b"HTTP/1.0 " + GARBAGE], ids=["at once", "after its version"])
def test_a_server_that_answers_no_http_is_told_so_briefly(begin, web, monkeypatch):  # noqa: F811
    monkeypatch.setattr(addresses, "_TRIES", 1)
    address = address_of(web, b"")
    web.troubles["GET", "/file"] = itertools.repeat(now_and_then(begin * 4 + b"\r\n\r\n"))
    with pytest.raises(WeightsUnreachable, match=r"cannot be fetched \(it answers no HTTP\)$"):
        addresses.download(address)


def test_a_reason_of_bytes_that_are_escaped_is_as_short_as_another():
    assert len(brief(ValueError("\x01" * 1000))) <= 160


@pytest.mark.parametrize("length", [b"-5", b"many", b"9" * 5000])
def test_a_length_that_is_none_is_not_waited_for(length, web):  # noqa: F811
    content = bytes(5000)
    address = address_of(web, content)
    head = b"HTTP/1.0 200 OK\r\nContent-Length: " + length + b"\r\n\r\n"
    web.troubles["GET", "/file"] = itertools.repeat(now_and_then(head, every=0.0, at_once=5000))
    assert addresses.download(address).read_bytes() == content


def test_a_server_that_is_slow_and_steady_is_waited_for(web, impatient):  # noqa: F811
    content = bytes(range(256)) * 40
    address = address_of(web, content)
    begin = LENGTH.replace(b"100000", str(len(content)).encode())
    web.troubles["GET", "/file"] = iter([now_and_then(begin, every=0.03, at_once=256)])
    began = time.monotonic()
    assert addresses.download(address).read_bytes() == content
    assert time.monotonic() - began > 2 * hub.SILENT_SECONDS and len(web.seen) == 1


def test_an_address_may_have_its_architecture_before_it(web, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("BURNISH_CACHE", str(tmp_path / "cache"))
    state = zoo.load_backbone("random:test_resnet", image_size=64).module.state_dict()
    address = address_of(web, safetensors.torch.save(state), "/net.safetensors")
    assert zoo.load_backbone(f"test_resnet={address}").name == "test_resnet"
    assert zoo.load_backbone(f" {address.replace('http://', 'HTTP://')}", arch="test_resnet").name == "test_resnet"
    with pytest.raises(UnknownModel, match="is not an address"):
        zoo.load_backbone("https:/host/net.pth#sha256=" + "0" * 64)


@pytest.mark.skipif(sys.platform != "linux", reason="limits of files are Linux's here")
def test_a_full_disk_is_no_tampering(web, tmp_path):  # noqa: F811
    address = address_of(web, bytes(300_000), "/net.pth")
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000));"
        "from burnish.backbones.reading import addresses; addresses.download(sys.argv[1])"
    )
    environment = {**os.environ, "BURNISH_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code, address], capture_output=True, text=True, env=environment, timeout=120
    )
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("burnish.errors.RunError: cannot write to") and "BURNISH_CACHE" in last


def test_a_hub_that_sends_more_than_it_says_is_left(web, monkeypatch, tmp_path):  # noqa: F811
    def endless(answer, content, start):
        answer.head(200, {"ETag": '"of-it"', "X-Repo-Commit": "0" * 40})
        while not answer.server.over.is_set():
            answer.wfile.write(bytes(1 << 16))

    monkeypatch.setattr(hub, "MAX_JSON_BYTES", 1_000_000)
    web.offer("someone/liar", config={"architecture": "resnet18"})
    path = web.path("someone/liar", "config.json")
    web.troubles["GET", path] = always(endless)
    with pytest.raises(BurnishError, match="more than the 1,000,000 bytes"):
        zoo.load_backbone("hf-hub:someone/liar")


def test_a_data_set_that_does_not_come_is_given_up(web, monkeypatch):  # noqa: F811
    monkeypatch.setattr(named, "_SILENT_SECONDS", 0.5)
    for kind in ("GET", "HEAD"):
        for path in ("/api/datasets/org/mute", "/api/datasets/org/mute/revision/main"):
            web.troubles[kind, path] = always(silence())
    with pytest.raises(DataError, match="sends less than"):
        open_source("hf:org/mute")
