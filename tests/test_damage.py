"""What is damaged, cut short, full or secret on the way in: said in a sentence, never read as something smaller or older."""

from __future__ import annotations

import gzip
import io
import json
import os
import struct
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pytest
import safetensors.torch
from PIL import Image
from test_backbones_hub import always, silence, web  # noqa: F401  (fixtures)
from test_hostile_later import address_of

from burnish import api, cli
from burnish.backbones import hub, zoo
from burnish.data.looks import read_digests
from burnish.data.sources import named, open_source
from burnish.data.store import PixelStore
from burnish.errors import BurnishError, DataError, NotARun, RunError, UnknownModel
from burnish.seeds import _seconds_of

NAMES = [f"{name}/{number}.png" for name in ("cat", "dog") for number in range(6)]
SECRET = "s3cr3t-token"


def picture(number):
    found = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(found, "PNG")
    return found.getvalue()


def tar_of(names=NAMES, **pax):
    """A tar of small pictures, each a header of 512 bytes and 512 bytes of content."""
    found = io.BytesIO()
    with tarfile.open(fileobj=found, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for number, name in enumerate(names):
            info, content = tarfile.TarInfo(name), picture(number)
            info.size = len(content)
            if number == 5:
                info.pax_headers = pax
            tar.addfile(info, io.BytesIO(content))
    return bytearray(found.getvalue())


def flipped(data, place):
    data[place] ^= 1
    return data


def chained():
    info = tarfile.TarInfo("x")
    info.size, info.type = 5, b"L"
    return (info.tobuf(tarfile.GNU_FORMAT) + b"abcd\0".ljust(512, b"\0")) * 3000


DAMAGED = {
    "a bit of a header": lambda: flipped(tar_of(), 3 * 1024 + 20),
    "a bit of a packed one's header": lambda: gzip.compress(bytes(flipped(tar_of(), 3 * 1024 + 20))),
    "a packed one's checksum": lambda: flipped(bytearray(gzip.compress(bytes(tar_of()))), -6),
    "cut between two files": lambda: tar_of()[: 7 * 1024],
    "cut in a header": lambda: tar_of()[: 7 * 1024 + 100],
    "cut in a file": lambda: tar_of()[: 7 * 1024 + 530],
    "zeros in its midst": lambda: tar_of()[: 5 * 1024] + bytes(1024) + tar_of()[6 * 1024 :],
    "two of them": lambda: tar_of() + tar_of(),
    "a size below zero": lambda: tar_of(size="-600"),
    "a size that is no number": lambda: tar_of(size="abc"),
    "headers of headers": chained,
}


@pytest.mark.parametrize("how", DAMAGED)
def test_a_damaged_tar_is_no_smaller_data_set(how, tmp_path):
    (tmp_path / "a.tar").write_bytes(DAMAGED[how]())
    with pytest.raises(DataError, match=r"damaged tar archive|cut short"):
        open_source(tmp_path / "a.tar")


def test_a_sound_tar_may_end_in_one_block_of_zeros_or_many(tmp_path):
    whole = tar_of()
    for rest in (512, 1024, 100_000):
        (tmp_path / "a.tar").write_bytes(whole[: 12 * 1024] + bytes(rest))
        assert len(open_source(tmp_path / "a.tar").paths) == 12


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_names_that_begin_in_the_folder_itself_are_those_without(kind, tmp_path):
    def archive(names):
        if kind == "tar":
            (tmp_path / "a").write_bytes(tar_of(names))
        else:
            with zipfile.ZipFile(tmp_path / "a", "w") as file:
                for number, name in enumerate(names):
                    file.writestr(name, picture(number))
        return tmp_path / "a"

    mixed = open_source(archive([f"./{name}" if number % 2 else name for number, name in enumerate(NAMES)]))
    assert mixed.classes == ("cat", "dog") and sorted(mixed.paths) == sorted(NAMES)
    with pytest.raises(DataError, match=r"two members called 'cat/0\.png'"):
        open_source(archive([*NAMES, "./cat/0.png"]))
    for name in (".", "./."):
        assert len(open_source(archive([*NAMES, name])).paths) == 12


# ---- secrets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("said", [
    f"https://user:{SECRET}@host/net.pth?token={SECRET}#sha256=00", f"HTTPS://user:{SECRET}@host/net.pth",
    f" https://host/net.pth?token={SECRET}", f"resnet18=https://host/net.pth?token={SECRET}#sha256=00",
    f"https:/user:{SECRET}@host/net.pth", f"https://user:{SECRET}@[bad/net.pth", f"http:///{SECRET}@",
])  # fmt: skip
def test_an_address_is_never_said_with_what_is_secret_in_it(said):
    assert SECRET not in hub.public(said)
    with pytest.raises(BurnishError) as error:
        zoo.load_backbone(said)
    assert SECRET not in str(error.value)


def test_names_without_an_address_are_said_as_they_are():
    for name in ("resnet18", "hf-hub:org/name@v1", "a?b#c@d.pth", "x=y.pth"):
        assert hub.public(name) == name


def test_an_address_may_have_its_architecture_before_it(web, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("BURNISH_CACHE", str(tmp_path / "cache"))
    state = zoo.load_backbone("random:test_resnet", image_size=64).module.state_dict()
    address = address_of(web, safetensors.torch.save(state), "/net.safetensors")
    assert zoo.load_backbone(f"test_resnet={address}").name == "test_resnet"
    assert zoo.load_backbone(f" {address.replace('http://', 'HTTP://')}", arch="test_resnet").name == "test_resnet"
    with pytest.raises(UnknownModel, match="is not an address"):
        zoo.load_backbone("https:/host/net.pth#sha256=" + "0" * 64)


def test_a_comparison_tells_a_token_in_nothing_that_is_passed_on(web, shapes, tmp_path, capsys):  # noqa: F811
    state = zoo.load_backbone("random:test_resnet", image_size=64).module.state_dict()
    address = address_of(web, safetensors.torch.save(state), f"/net.safetensors?token={SECRET}")
    folder = tmp_path / "race"
    words = ["--methods", "probe", "--image-size", "64", "--budget", "none", "--cache", "off", "--out", str(folder)]
    cli.main(["compare", str(shapes), "--models", address, *words])
    told = capsys.readouterr()
    assert SECRET not in told.out + told.err
    assert [path for path in folder.rglob("*") if SECRET in path.name] == []
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in ("run.json", "recipe.toml")]
    assert {"leaderboard.html", "compare.json", "leaderboard.csv"} <= {path.name for path in files}
    assert [path.name for path in files if SECRET.encode() in path.read_bytes()] == []


# ---- fetching --------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="limits of files are Linux's here")
def test_a_full_disk_is_no_tampering(web, tmp_path):  # noqa: F811
    address = address_of(web, bytes(300_000), "/net.pth")
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000));"
        "from burnish.backbones import hub; hub.download(sys.argv[1])"
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


# ---- runs ------------------------------------------------------------------------------------------------------------

TINY = {"model": "random:test_resnet", "image_size": 32, "method": "probe", "budget": None, "epochs": 1, "cache": "off"}


@pytest.mark.parametrize("text", ["", "path,sha256", "a,b\nc,d\n", None])
def test_hashes_that_were_cut_short_are_not_taken_for_none(text, shapes, tmp_path):
    if text is not None:
        (tmp_path / "images.csv").write_text(text)
        with pytest.raises(NotARun, match="is damaged"):
            read_digests(tmp_path / "images.csv")
        return
    assert read_digests(tmp_path / "images.csv") == {}
    api.fit(shapes, out=tmp_path / "run", **TINY)
    table = tmp_path / "run" / "images.csv"
    assert len(read_digests(table)) == 60
    table.write_bytes(table.read_bytes()[:-3])
    with pytest.raises(NotARun, match=r"images\.csv is damaged"):
        api.fit(shapes, out=tmp_path / "run", **TINY)
    (tmp_path / "run" / "images.csv").unlink()
    (tmp_path / "run" / "pictures.json").write_text('{"cases": 7}')
    with pytest.raises(NotARun, match="not as burnish writes it"):
        api.fit(shapes, out=tmp_path / "run", **TINY)


@pytest.mark.parametrize("text", ["", "{", "{}", "[1]"])
def test_a_damaged_comparison_is_said_in_a_sentence(text, shapes, tmp_path):
    told = {"model": "random:test_resnet", "image_size": 32, "budget": None, "cache": "off"}
    del told["model"]
    race = {"models": ["random:test_resnet"], "methods": ["probe"], "out": tmp_path / "race", **told}
    if not (tmp_path / "race").exists():
        api.compare(shapes, **race)
    (tmp_path / "race" / "compare.json").write_text(text)
    with pytest.raises(NotARun, match=r"compare\.json is not as burnish writes it"):
        api.compare(shapes, **race)


@pytest.mark.parametrize("facts", [{}, {"seconds": "long"}, {"seconds": -1}, {"seconds": None}])
def test_a_seed_that_does_not_say_how_long_it_took_is_named(facts, tmp_path):
    (tmp_path / "result.json").write_text(json.dumps(facts))
    with pytest.raises(NotARun, match="does not say how long"):
        _seconds_of(tmp_path)


def test_an_edited_audit_is_kept_where_nobody_can_say_what_was_written(shapes, tmp_path):
    api.audit(shapes, model="none", out=tmp_path / "audit")
    (tmp_path / "audit" / "result.json").write_text('{"table_sha2')
    table = tmp_path / "audit" / "audit.csv"
    table.write_text(table.read_text() + "mine\n")
    with pytest.raises(RunError, match="was edited since its audit"):
        api.audit(shapes, model="none", out=tmp_path / "audit")
    assert table.read_text().endswith("mine\n")


def test_files_of_others_in_the_cache_are_let_alone(tmp_path):
    foreign = tmp_path / "my-sensor-dump.pixels"
    foreign.write_bytes(bytes(50_000))
    own = tmp_path / f"{'0' * 20}-{'1' * 20}.pixels"
    own.write_bytes(struct.pack("<16s", b"burnish pixels 1"))
    assert PixelStore(tmp_path, limit_bytes=1000)._make_room(990, instead_of=tmp_path / "new.pixels")
    assert foreign.exists() and not own.exists()
