"""Base class of the composers: cached embeddings in, f_qry and f_tar out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from pydantic import BaseModel
from torch import Tensor, nn
from torch.nn.functional import normalize

from manifests.errors import IncompleteError
from manifests.schema import Frozen


class Composer(nn.Module, ABC):
    """Map cached image and text embeddings, of ``image_dim`` and ``text_dim``, to unit-norm features of size ``dim``."""

    title: ClassVar[str]
    version: ClassVar[int] = 1  # increment when the same options give other features
    trainable: ClassVar[bool]
    Options: ClassVar[type[BaseModel]] = Frozen
    dim: int

    def __init__(self, options: BaseModel, image_dim: int, text_dim: int):
        super().__init__()
        self.options: Any = options  # of the subclass's ``Options``
        self.image_dim, self.text_dim = image_dim, text_dim

    @property
    def name(self) -> str:
        """Name of the composer in the registry."""
        return type(self).__module__.rsplit(".", 1)[-1]

    def target_modules(self) -> tuple[nn.Module, ...]:
        """Return the modules that ``target`` uses, in a fixed order; cross-fitting shares them among its heads."""
        return ()

    @abstractmethod
    def query(self, image: Tensor, text: Tensor) -> Tensor:
        """Return f_qry of reference images and feedback. image [B, image_dim], text [B, text_dim] -> [B, dim]."""

    @abstractmethod
    def target(self, image: Tensor) -> Tensor:
        """Return f_tar of catalog images. image [B, image_dim] -> [B, dim]."""

    def words(self, text: Tensor) -> Tensor | None:
        """Return a text alone as a query, without a reference image. text [B, text_dim] -> [B, dim].

        None (the default) for a composer whose texts share no space with its targets.
        """
        return None


class SharedSpace(Composer):
    """Composer of embeddings of one space: targets and texts alone are the normalized embeddings. ``other``: advice."""

    other: ClassVar[str]

    def __init__(self, options: BaseModel, image_dim: int, text_dim: int):
        super().__init__(options, image_dim, text_dim)
        if image_dim != text_dim:
            what = f"image rows have {image_dim} values and text rows {text_dim}: use {self.other}"
            raise IncompleteError(f"composer {self.name!r} adds embeddings of one space, but {what}")
        self.dim = image_dim

    def words(self, text: Tensor) -> Tensor:
        return normalize(text, dim=-1)

    def target(self, image: Tensor) -> Tensor:
        return normalize(image, dim=-1)
