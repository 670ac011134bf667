"""State files as an attacker makes them: any tensors, any header, and a hash that fits, because it has no key."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from byheart import load
from byheart.errors import ByheartError
from byheart.model.backbone import Backbone
from byheart.protocol.codec import shelf
from byheart.text.encoder import ChatEncoder
from tests.conftest import CAT, save_tiny
from tests.samples import METHODS, OPTIONS, codec_of, moments_of


@dataclass(frozen=True)
class StateFile:
    """What a state file holds: tensors, and the header as JSON text."""

    tensors: Mapping[str, Tensor]
    header: str

    @classmethod
    def read(cls, path: Path) -> StateFile:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            return cls(tensors, file.metadata()["byheart"])

    def write(self, path: Path) -> Path:
        """The file, with the hash that its reader will compute."""
        digest = hashlib.sha256(self.header.encode())
        for name in sorted(self.tensors):
            tensor = self.tensors[name].contiguous()
            digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
        tensors = {name: tensor.contiguous().clone() for name, tensor in self.tensors.items()}
        save_file(tensors, path, metadata={"byheart": self.header, "hash": digest.hexdigest()})
        return path

    def with_header(self, header: str) -> StateFile:
        return replace(self, header=header)

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> StateFile:
        return replace(self, tensors=tensors)


@dataclass(frozen=True)
class Originals:
    """A tiny model in a folder, opened, and a good state file of every method that can be written."""

    model: Path
    backbone: Backbone
    encoder: ChatEncoder
    files: Mapping[str, StateFile]

    @classmethod
    def make(cls, folder: Path, *methods: str) -> Originals:
        model = save_tiny(folder / "model")
        backbone = Backbone.open(str(model), dtype="float32")
        # For this process and others; byheart's own texts would take seconds.
        shelf.keep(codec_of(backbone))
        moments_of(backbone)
        encoder, files = load(backbone, method="full").encoder, {}
        for method in methods or METHODS:
            session = load(backbone, method=method, encoder=encoder, **OPTIONS.get(method, {}))
            try:
                session.write(CAT * 2, source="cat.txt")
            except ByheartError:
                continue  # of learned parts alone: it keeps no text
            session.save(folder / "original.safetensors")
            files[method] = StateFile.read(folder / "original.safetensors")
        return cls(model, backbone, encoder, files)
