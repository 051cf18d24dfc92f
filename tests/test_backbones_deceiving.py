"""Files of weights that another reader would read otherwise, or that are small and grow: refused soon; and sound ones like them."""

from __future__ import annotations

import io
import json
import re
import struct
import zipfile
import zlib
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hostile.keras import chained, conv, keras_file, layer, put_in_place
from hostile.kinds import SCALED_MEGABYTES, preprocess_of, written
from hostile.pickles import old_file, text_of, torch_zip
from hostile.safetensors import safetensors_file, tensor_entry
from hostile.smallest import smallest_network
from loading import features, refused
from watched import reader as reader  # a fixture

from burnish.archives import Zip
from burnish.backbones.reading.pickles import _instructions, read_torch
from burnish.errors import BadWeights

# ---- the files -------------------------------------------------------------------------------------------------------


ENCODE, LATIN = b"c_codecs\nencode\n", text_of("latin1")


def two_tables_of_contents(folder: Path) -> Path:
    """Python takes the table before the end record; torch goes where that record points: to the other, of equal length."""
    evil, plain = io.BytesIO(), io.BytesIO()
    for stream, program in ((evil, b"\x80\x02cbuiltins\nbytearray\nJ\x00\x00\x00\x0a\x85R."), (plain, b"\x80\x02}.")):
        with zipfile.ZipFile(stream, "w") as archive:
            archive.writestr("archive/data.pkl", program.ljust(64, b"\0"))
    first, second = evil.getvalue(), plain.getvalue()
    at = first.rindex(b"PK\x01\x02")  # of the first table; without its end record
    whole = bytearray(first[:-22] + second)
    struct.pack_into("<I", whole, len(whole) - 6, at)
    assert len(first) == len(second)
    return written(folder, "hostile.pth", bytes(whole))


def _encoded(codec: str, text: str = "x" * 2048) -> bytes:
    return b"\x80\x02" + ENCODE + text_of(text) + text_of(codec) + b"\x86R."


def a_text_doubled_under_another_name_of_its_codec(folder: Path) -> Path:
    calls, ends = ENCODE * 17, (text_of("hex-codec") + b"\x86R") * 16
    return torch_zip(folder, b"\x80\x02" + calls + text_of("x" * 2048) + LATIN + b"\x86R" + ends + b".")


def a_text_in_a_coding_that_takes_hours(folder: Path) -> Path:
    return torch_zip(folder, _encoded("punycode", "".join(map(chr, range(0x4E00, 0x9000)))))


def a_codec_whose_name_is_put_together(folder: Path) -> Path:
    """rot13 of urk is hex."""
    name = ENCODE + text_of("urk") + text_of("rot13") + b"\x86R"
    return torch_zip(folder, b"\x80\x02" + ENCODE + text_of("ab") + name + b"\x86R.")


def the_function_that_makes_bytes_put_into_a_list(folder: Path) -> Path:
    return torch_zip(folder, b"\x80\x02](" + ENCODE + b"e.")


def one_dictionary_copied_into_many_records(folder: Path) -> Path:
    table = b"}q\x01(" + b"".join(b"J" + struct.pack("<i", number) + b"N" for number in range(20_000)) + b"u0"
    once = b"h\x00)Rh\x01b0"
    return torch_zip(folder, b"\x80\x02ccollections\nOrderedDict\nq\x000" + table + once * 2000 + b"N.")


def numbers_out_of_nothing(folder: Path) -> Path:
    return torch_zip(folder, b"\x80\x02ctorch.storage\nTypedStorage\nJ\x00\x00\x00\x7f\x85R.")


def an_old_file_whose_storages_are_not_in_it(folder: Path) -> Path:
    storage = (
        b"(" + text_of("storage") + b"ctorch\nFloatStorage\n" + text_of("0") + text_of("cpu") + b"J\x00\x00\x00\x02NtQ"
    )
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00J\x00\x00\x00\x02\x85K\x01\x85\x89"
    tensor += b"ccollections\nOrderedDict\n)RtR"
    named = b"}(" + text_of("a.b") + tensor + text_of("a.c") + tensor + b"u"
    return written(folder, "hostile.pth", old_file(folder, b"\x80\x02" + named + b"."))


def a_cifar_network_of_thousands_of_blocks(folder: Path) -> Path:
    shapes: dict[str, list[int]] = {"conv1.weight": [16, 3, 3, 3], "layer3.0.conv2.weight": [64, 64, 3, 3]}
    shapes |= {f"layer1.{number}.x": [1] for number in range(20_000)}
    header, at = {}, 0
    for name, shape in shapes.items():
        size = 4 * int(np.prod(shape))
        header[name] = tensor_entry(shape, at, at + size)
        at += size
    return safetensors_file(folder, header, bytes(at))


def few_numbers_under_the_names_of_a_giant(folder: Path) -> Path:
    one = torch.zeros(2**18)
    torch.save(
        {"arch": "vit_7b_patch16_dinov3", "state_dict": {f"blocks.{number}.w": one for number in range(13_000)}},
        folder / "hostile.pth",
    )
    return folder / "hostile.pth"


def _with_config(folder: Path, config: dict[str, Any]) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    return safetensors_file(folder, {"a.b": tensor_entry([1], 0, 4), "a.c": tensor_entry([1], 4, 8)}, bytes(8))


def a_config_that_asks_for_a_table_of_all_pairs(folder: Path) -> Path:
    return _with_config(
        folder, {"architecture": "beit_base_patch16_224", "pretrained_cfg": {"input_size": [3, 4096, 4096]}}
    )


def a_config_that_asks_for_sixty_thousand_patches(folder: Path) -> Path:
    told = {"input_size": [3, 4096, 4096]}
    return _with_config(folder, {"architecture": "vit_base_patch16_224", "pretrained_cfg": told})


def names_within_names_within_names(folder: Path) -> Path:
    header = {"0." * 240 + str(number): tensor_entry([1], 4 * number, 4 * number + 4) for number in range(2000)}
    return safetensors_file(folder, header, bytes(4 * 2000))


def keras_of_few_weights_and_many_pixels(folder: Path) -> Path:
    kernel = np.zeros((1, 1, 3, 256), np.float32)

    def fill(file: Any) -> None:
        put_in_place(file, "layers/conv2d/vars/0", kernel)
        put_in_place(file, "layers/conv2d/vars/1", np.zeros(256, np.float32))

    wide = conv(filters=256, kernel_size=[1, 1])
    return keras_file(folder, chained(wide, layer("GlobalAveragePooling2D", "pool"), size=4096), fill)


def h5_that_lists_one_layer_without_end(folder: Path) -> Path:
    import h5py

    with h5py.File(folder / "hostile.h5", "w") as file:
        file.create_group("a")
        file["a/x"] = np.zeros(1, np.float32)
        for number in range(2):
            file.attrs[f"layer_names{number}"] = np.array([b"a"] * 7000)
    return folder / "hostile.h5"


CASES = {
    two_tables_of_contents: "not where its end says",
    a_text_doubled_under_another_name_of_its_codec: "another coding",
    a_text_in_a_coding_that_takes_hours: "another coding",
    a_codec_whose_name_is_put_together: "another coding",
    the_function_that_makes_bytes_put_into_a_list: "another coding",
    one_dictionary_copied_into_many_records: "again and again",
    numbers_out_of_nothing: "out of nothing",
    an_old_file_whose_storages_are_not_in_it: "claims more numbers|cannot be read",
    a_cifar_network_of_thousands_of_blocks: "fit none|tensors",
    few_numbers_under_the_names_of_a_giant: "vit_7b|numbers",
    a_config_that_asks_for_a_table_of_all_pairs: "4096",
    a_config_that_asks_for_sixty_thousand_patches: "4096",
    names_within_names_within_names: "fit none",
    keras_of_few_weights_and_many_pixels: "gives a tensor of",
    h5_that_lists_one_layer_without_end: "layers|knows",
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_it_is_refused_in_a_sentence_soon_and_takes_little(make, tmp_path, reader):
    path = make(tmp_path)
    answer = reader.ask(path, preprocess=preprocess_of(path))
    assert answer["outcome"] == "refused" and not answer["seen"], answer
    assert answer["seconds"] < 5.0 and answer["megabytes"] < 3 * SCALED_MEGABYTES, answer
    assert answer["message"].isprintable() and len(answer["message"]) < 1200
    assert re.search(CASES[make], answer["message"]), answer["message"]


def test_two_readers_would_have_read_two_programs(tmp_path):
    """What the refusal is for: Python's zipfile finds the harmless one."""
    data = two_tables_of_contents(tmp_path).read_bytes()
    assert _instructions(Zip(data, "x")).startswith(b"\x80\x02}")
    with pytest.raises(BadWeights, match="end says"):
        read_torch(data, "x")


def test_torch_writes_such_archives_as_are_read(tmp_path):
    """With and without the older form, repacked by Python, and with everything that scripts keep beside weights."""
    kept = {
        "state_dict": {"a.w": torch.ones(2), "a.b": torch.zeros(1)},
        "classes": ["A310", "A320", "V100", "zip", "hex", "base64"],
        "args": Namespace(partition="A100", zip=False, lr=0.1),
        "best": np.float64(0.5),
        "raw": b"\x00\xff" * 3,
        "again": b"\x00\xff" * 3,
    }
    torch.save(kept, tmp_path / "a.pth")
    torch.save(kept, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    torch.save(kept, tmp_path / "new.pth", pickle_protocol=4)
    with zipfile.ZipFile(tmp_path / "a.pth") as whole, zipfile.ZipFile(tmp_path / "again.pth", "w") as copy:
        for name in whole.namelist():
            copy.writestr(name, whole.read(name))
    for name in ("a.pth", "old.pth", "again.pth"):
        found = read_torch((tmp_path / name).read_bytes(), name)
        assert found["classes"] == kept["classes"] and found["raw"] == kept["raw"]
        assert torch.equal(found["state_dict"]["a.w"], torch.ones(2)) and found["best"] == 0.5


def test_numbers_that_tensors_share_count_once():
    from burnish.backbones.reading.checkpoint import numbers_in

    one = torch.zeros(10)
    assert numbers_in([one, one, torch.zeros(5)]) == 15


# ---- a file of torch.save with a second name -------------------------------------------------------------------------


def second_name(name: str, other: str, *, behind: bytes = b"") -> zipfile.ZipInfo:
    """A member that readers who heed the extra field 0x7075 call `other`."""
    said = struct.pack("<BL", 1, zlib.crc32(name.encode())) + other.encode()
    info = zipfile.ZipInfo(name)
    info.extra = behind + struct.pack("<HH", 0x7075, len(said)) + said
    return info


MINUTES = struct.pack("<HHBL", 0x5455, 5, 1, 0)  # a time, as zip of Info-ZIP notes it
EVIL, PLAIN = b"\x80\x02cbuiltins\nbytearray\nK\x08\x85R.", b"\x80\x02}."


@pytest.mark.parametrize("behind", [b"", MINUTES], ids=["first", "behind a time"])
@pytest.mark.parametrize("first, second", [(EVIL, PLAIN), (PLAIN, EVIL)], ids=["for torch", "for Python"])
def test_a_member_that_some_readers_call_otherwise_is_two_names_for_one_member(first, second, behind, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr(second_name("archive/data.pkl", "archive/other", behind=behind), first)
        archive.writestr(second_name("archive/harmless", "archive/data.pkl", behind=behind), second)
        archive.writestr("archive/version", "3\n")
    assert "two names for one member" in refused(tmp_path / "a.pth")


def test_members_with_other_extra_fields_are_read(tmp_path):
    state = smallest_network(tmp_path)
    torch.save(state, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as whole, zipfile.ZipFile(tmp_path / "b.pth", "w") as copy:
        for name in whole.namelist():
            info = zipfile.ZipInfo(name)
            info.extra = MINUTES
            copy.writestr(info, whole.read(name))
    assert torch.equal(features(tmp_path / "a.pth"), features(tmp_path / "b.pth"))
