"""HDF5 files with links, references and sizes that lead elsewhere."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from hostile.keras import chained, conv, keras_file, layer
from hostile.kinds import SCALED, SCALED_MEGABYTES, kind


def _fifo(folder: Path) -> str:
    """Whoever opens it waits for ever: HDF5's own opening of files is seen by no audit hook."""
    os.mkfifo(folder / "secret.h5")
    return str(folder / "secret.h5")


@kind("layers/x is a link to another file")
def h5_with_an_external_link(folder):
    import h5py

    return keras_file(
        folder, chained(conv()), lambda file: file.__setitem__("layers/x", h5py.ExternalLink(_fifo(folder), "/a"))
    )


@kind("layers/x is a link to another place")
def h5_with_a_soft_link(folder):
    import h5py

    return keras_file(folder, chained(conv()), lambda file: file.__setitem__("layers/x", h5py.SoftLink("/layers")))


@kind("vars/0 takes its numbers from another file")
def h5_whose_numbers_lie_in_another_file(folder):
    def fill(file: Any) -> None:
        del file["layers/conv2d/vars/0"]
        file.create_dataset("layers/conv2d/vars/0", (3, 3, 3, 4), "f4", external=[(_fifo(folder), 0, 432)])

    return keras_file(folder, chained(conv()), fill)


@kind("vars/0 takes its numbers from another file")
def h5_whose_numbers_are_a_view_of_another_file(folder):
    import h5py

    def fill(file: Any) -> None:
        del file["layers/conv2d/vars/0"]
        layout = h5py.VirtualLayout((3, 3, 3, 4), "f4")
        layout[...] = h5py.VirtualSource(_fifo(folder), "a", (3, 3, 3, 4))
        file.create_virtual_dataset("layers/conv2d/vars/0", layout)

    return keras_file(folder, chained(conv()), fill)


@kind("holds no numbers|has no|vars/0")
def h5_of_lists_of_any_length(folder):
    import h5py

    def fill(file: Any) -> None:
        del file["layers/conv2d/vars/0"]
        file.create_dataset("layers/conv2d/vars/0", (3, 3, 3, 4), h5py.vlen_dtype(np.float32))

    return keras_file(folder, chained(conv()), fill)


@kind("holds no numbers|has no|vars/0")
def h5_of_references(folder):
    import h5py

    def fill(file: Any) -> None:
        file.create_dataset("layers/other", (10_000,), h5py.ref_dtype)

    return keras_file(folder, chained(conv()), fill)


@kind("nested too deeply, or hold themselves")
def h5_with_a_group_that_holds_itself(folder):
    return keras_file(folder, chained(conv()), lambda file: file["layers"].__setitem__("again", file["layers"]))


@kind("", seconds=SCALED)
def h5_whose_groups_hold_the_next_one_twice(folder):
    def fill(file: Any) -> None:
        for depth in range(12):
            group, below = file.require_group(f"g{depth}"), file.require_group(f"g{depth + 1}")
            group["a"], group["b"] = below, below

    return keras_file(folder, chained(conv()), fill)


@kind("claims [0-9,]+ bytes")
def h5_that_claims_a_trillion_numbers(folder):
    def fill(file: Any) -> None:
        file.create_dataset("layers/other", (10**6, 10**6), "f4", chunks=(1024, 1024))

    return keras_file(folder, chained(conv()), fill)


@kind("", megabytes=SCALED_MEGABYTES)
def h5_of_six_hundred_megabytes_that_were_never_written(folder):
    def fill(file: Any) -> None:
        file.create_dataset("layers/dense/vars/0", (3072, 50_000), "f4", chunks=(1024, 1024))
        file.create_dataset("layers/dense/vars/1", (50_000,), "f4", chunks=(1024,))

    dense = layer("Dense", "dense", units=50_000)
    return keras_file(folder, chained(layer("Flatten", "flat"), dense, layer("ReLU", "last")), fill)


@kind("config")
def h5_whose_config_is_a_number(folder):
    import h5py

    with h5py.File(folder / "hostile.h5", "w") as file:
        file.attrs["model_config"], file["layers/dense/kernel"] = 7, np.zeros(4, np.float32)
    return folder / "hostile.h5"


@kind("HDF5|layer|root|own")
def h5_with_weights_at_the_root(folder):
    import h5py

    with h5py.File(folder / "hostile.h5", "w") as file:
        file["kernel"] = np.zeros(4, np.float32)
    return folder / "hostile.h5"


@kind("layer_names|damaged|layers")
def h5_whose_list_of_layers_is_a_number(folder):
    import h5py

    with h5py.File(folder / "hostile.h5", "w") as file:
        file.attrs["layer_names"], file["dense/kernel"] = 7, np.zeros(4, np.float32)
    return folder / "hostile.h5"


@kind("layer_names|damaged|layers")
def h5_whose_list_of_layers_names_nothing(folder):
    import h5py

    with h5py.File(folder / "hostile.h5", "w") as file:
        file.attrs["layer_names"], file["dense/kernel"] = [b"", b"/", b"../..", b"\xff"], np.zeros(4, np.float32)
    return folder / "hostile.h5"


@kind("config|damaged|layers")
def h5_whose_config_is_an_empty_attribute(folder):
    import h5py

    with h5py.File(folder / "hostile.h5", "w") as file:
        file.attrs["model_config"], file["dense/kernel"] = h5py.Empty("S10"), np.zeros(4, np.float32)
    return folder / "hostile.h5"
