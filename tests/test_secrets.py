"""A token or a password in an address: told in no sentence and in nothing that is passed on."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
import safetensors.torch
from test_backbones_hub import (
    assert_a_sentence,
    clock,  # noqa: F401  (a fixture)
    raw,
    status,
    web,  # noqa: F401  (a fixture)
)
from test_servers import LENGTH, address_of, now_and_then

from burnish import cli
from burnish.backbones import zoo
from burnish.backbones.reading import addresses, hub
from burnish.errors import BurnishError, ModelError

SECRET = "hunter2"  # of a test server that asks for none
TOKEN = "s3cr3t-token"


# ---- where a server fails --------------------------------------------------------------------------------------------


def _offline(server: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def _trouble(answer: Any):
    return lambda server, monkeypatch: server.troubles.__setitem__(("GET", PATH), itertools.repeat(answer))


def _too_large(server: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(addresses, "MAX_WEIGHTS_BYTES", 10)


def _trickles(server: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(hub, "SILENT_SECONDS", 0.2)
    _trouble(now_and_then(LENGTH, every=0.1, at_once=25))(server, monkeypatch)


PATH = f"/file?token={SECRET}"
FAILS = {
    "is offline": _offline,
    "asks for a login": _trouble(status(401)),
    "has no such file": _trouble(status(404)),
    "is busy": _trouble(status(503)),
    "breaks off": _trouble(raw(b"")),
    "does not speak HTTP": _trouble(raw(b"garbage\r\n\r\n")),
    "sends another file": lambda server, monkeypatch: server.files.__setitem__(PATH, b"another"),
    "offers too much": _too_large,
    "sends too much": lambda server, monkeypatch: (
        _too_large(server, monkeypatch),
        _trouble(raw(b"HTTP/1.0 200 OK\r\n\r\n" + bytes(100)))(server, monkeypatch),
    ),
    "trickles": _trickles,
    "sends on to another": _trouble(status(302, Location="http://example.invalid/")),
}


@pytest.mark.parametrize("how", FAILS)
def test_a_token_in_an_address_is_not_said_where_its_server_fails(how, web, monkeypatch):  # noqa: F811
    address = address_of(web, bytes(1000), PATH)
    FAILS[how](web, monkeypatch)
    with pytest.raises(ModelError) as error:
        addresses.download(address)
    assert_a_sentence(error)
    assert SECRET not in str(error.value) and f"{web.address}/file" in str(error.value)


def test_a_password_in_an_address_is_not_said(web, monkeypatch):  # noqa: F811
    address = address_of(web, bytes(1000), PATH).replace("http://", f"http://me:{SECRET}@")
    with pytest.raises(ModelError) as reached:
        addresses.download(address)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError) as offline:
        addresses.download(address)
    for error in (reached, offline):
        assert_a_sentence(error)
        assert SECRET not in str(error.value) and f"{web.address}/file" in str(error.value)


# ---- where the address is wrong --------------------------------------------------------------------------------------


HASH = "#sha256=" + "0" * 64


# Addresses that are refused before anything is asked for.
MISTAKEN = {
    "a password before a host without a port": f"http://me:{SECRET}@127.0.0.1/file{HASH}",
    "no hash": f"https://me:{SECRET}@example.invalid/file?token={SECRET}",
    "no https": f"http://me:{SECRET}@example.invalid/file?token={SECRET}{HASH}",
    "a space": f"https://example.invalid/a file?token={SECRET}{HASH}",
    "a port that is none": f"https://me:{SECRET}@example.invalid:x/file{HASH}",
    "brackets": f"https://me:{SECRET}@[example.invalid/file{HASH}",
}


@pytest.mark.parametrize("what", MISTAKEN)
def test_a_secret_in_an_address_with_a_mistake_is_not_said(what, web):  # noqa: F811
    with pytest.raises(ModelError) as error:
        addresses.download(MISTAKEN[what])
    assert SECRET not in str(error.value)


@pytest.mark.parametrize("said", [
    f"https://user:{TOKEN}@host/net.pth?token={TOKEN}#sha256=00", f"HTTPS://user:{TOKEN}@host/net.pth",
    f" https://host/net.pth?token={TOKEN}", f"resnet18=https://host/net.pth?token={TOKEN}#sha256=00",
    f"https:/user:{TOKEN}@host/net.pth", f"https://user:{TOKEN}@[bad/net.pth", f"http:///{TOKEN}@",
])  # fmt: skip
def test_an_address_is_never_said_with_what_is_secret_in_it(said):
    assert TOKEN not in hub.public(said)
    with pytest.raises(BurnishError) as error:
        zoo.load_backbone(said)
    assert TOKEN not in str(error.value)


def test_names_without_an_address_are_said_as_they_are():
    for name in ("resnet18", "hf-hub:org/name@v1", "a?b#c@d.pth", "x=y.pth"):
        assert hub.public(name) == name


# ---- what is passed on -----------------------------------------------------------------------------------------------


def test_a_run_from_an_address_with_a_token_tells_it_in_nothing_that_is_passed_on(web, shapes, tmp_path, capsys):  # noqa: F811
    state = zoo.load_backbone("random:test_resnet", image_size=64).module.state_dict()
    path = f"/weights/net.safetensors?token={SECRET}"
    address = address_of(web, safetensors.torch.save(state), path)
    words = ["--arch", "test_resnet", "--image-size", "64", "--epochs", "1", "--budget", "none", "--method", "probe"]
    folder = tmp_path / "run"
    cli.main(["fit", str(shapes), "--model", address, *words, "--out", str(folder), "--cache", "off"])
    assert [one for one in web.seen if one[1] == path]
    shared = [path for path in folder.rglob("*") if path.is_file() and path.name not in ("run.json", "recipe.toml")]
    assert {"report.html", "result.json"} <= {path.name for path in shared}
    assert any("tfevents" in path.name for path in shared)
    assert [str(path.relative_to(folder)) for path in shared if SECRET.encode() in path.read_bytes()] == []
    result = json.loads((folder / "result.json").read_text())
    assert result["recipe"]["model"] == f"{web.address}/weights/net.safetensors"


def test_a_comparison_tells_a_token_in_nothing_that_is_passed_on(web, shapes, tmp_path, capsys):  # noqa: F811
    state = zoo.load_backbone("random:test_resnet", image_size=64).module.state_dict()
    address = address_of(web, safetensors.torch.save(state), f"/net.safetensors?token={TOKEN}")
    folder = tmp_path / "race"
    words = ["--methods", "probe", "--image-size", "64", "--budget", "none", "--cache", "off", "--out", str(folder)]
    cli.main(["compare", str(shapes), "--models", address, *words])
    told = capsys.readouterr()
    assert TOKEN not in told.out + told.err
    assert [path for path in folder.rglob("*") if TOKEN in path.name] == []
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in ("run.json", "recipe.toml")]
    assert {"leaderboard.html", "compare.json", "leaderboard.csv"} <= {path.name for path in files}
    assert [path.name for path in files if TOKEN.encode() in path.read_bytes()] == []
