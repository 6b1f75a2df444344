"""Which weights an adapter was made for: written into it, and checked where the two are loaded together.

A sample stands for the weights, so that loading does not read a file of many gigabytes twice: its size, and
64 blocks of 64 KiB at even distances. Two models that were trained apart differ in every block; a change of a
few tensors can fall between them. An adapter that tells no base is taken as it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from cogumi.errors import RunError

BASE_KEY = "cogumi.adapter.base_sampled_sha256"
"""Of a GGUF adapter: the sample of the file that it is added to."""
_BLOCKS, _BLOCK_BYTES = 64, 1 << 16


def weights_sample(files: Sequence[Path]) -> str:
    """Return ``sha256:…`` of the sizes of these files, in their order, and of blocks of each.

    A file of up to 4 MiB is read whole. Raises ``RunError`` naming one that cannot be read.
    """
    found = hashlib.sha256()
    for file in files:
        try:
            size = file.stat().st_size
            found.update(size.to_bytes(8, "little"))
            with file.open("rb") as handle:
                if size <= _BLOCKS * _BLOCK_BYTES:
                    found.update(handle.read())
                    continue
                for block in range(_BLOCKS):
                    handle.seek(block * (size - _BLOCK_BYTES) // (_BLOCKS - 1))
                    found.update(handle.read(_BLOCK_BYTES))
        except OSError as error:
            raise RunError(f"{file}: cannot be read ({error.strerror or error})") from error
    return f"sha256:{found.hexdigest()}"


def check_gguf_base(model: Path, adapter: Path) -> None:
    """Raise ``RunError`` when a GGUF adapter tells that it was made for another file than ``model``."""
    from evals.backends.gguf_header import read_header

    wanted = read_header(adapter).metadata.get(BASE_KEY)
    if wanted is not None and wanted != weights_sample([model]):
        raise another_base(model, adapter)


def another_base(model: Path, adapter: Path) -> RunError:
    """Return the error of an adapter and a base that do not belong together."""
    return RunError(
        f"{adapter}: made for another model than {model}, whose weights differ; take both from the same "
        "artifact, or run compression.recover on this model"
    )
