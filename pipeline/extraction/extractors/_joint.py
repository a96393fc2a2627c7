"""Common parts of FashionBERT and FashionVLP: a BERT over words and visual tokens, a CNN, and loading and saving."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from PIL import Image as Pillow
from PIL import ImageOps
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import normalize

from manifests.shapes import misfit
from manifests.text import on_one_line
from pipeline.extraction import hub
from pipeline.extraction.adapters import adapter_weights
from pipeline.extraction.extractors._fittable import FitOptions, Fittable
from pipeline.extraction.extractors.base import Card, ExtractorOptions
from pipeline.extraction.images import decoder
from pipeline.extraction.tokens import Tokens


class JointOptions(ExtractorOptions):
    """``model``: a folder written by ``fit-extractor``; absent: the one fitted for this spec.

    The other options define the network to fit. ``text_model`` and ``image_model`` (hub id or folder of a BERT and of a
    ResNet) provide pretrained weights and their sizes; without them the weights are random and the sizes are those
    given here, by default BERT-base and ResNet-50.
    """

    model: str | None = None
    text_model: str | None = None
    image_model: str | None = None
    max_tokens: int = Field(64, ge=4)
    vocabulary: int = Field(20000, ge=8)
    width: int = Field(768, ge=8)
    layers: int = Field(12, ge=1)
    heads: int = Field(12, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)
    image_stem: int = Field(64, ge=4)
    image_widths: tuple[int, ...] = (256, 512, 1024, 2048)
    image_depths: tuple[int, ...] = (3, 4, 6, 3)
    image_layer: Literal["bottleneck", "basic"] = "bottleneck"
    pixel_mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # ImageNet statistics, as for torchvision's ResNets
    pixel_std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    fit: FitOptions = FitOptions()


class JointNetwork(nn.Module):
    """BERT over the sequence of words and ``visual_tokens`` visual tokens, and a ResNet for the pixels.

    ``settings``: {"text": BertConfig, "image": ResNetConfig, "max_tokens": int, "pixel_mean", "pixel_std", ...}.
    """

    visual_tokens: int
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, settings: dict[str, Any], visual_tokens: int):
        from transformers import BertConfig, BertModel, ResNetConfig, ResNetModel

        super().__init__()
        self.visual_tokens, self.max_tokens = visual_tokens, int(settings["max_tokens"])
        text, image = BertConfig(**settings["text"]), ResNetConfig(**settings["image"])
        if text.max_position_embeddings < self.max_tokens + visual_tokens:
            what = f"{self.max_tokens} word and {visual_tokens} visual tokens need {self.max_tokens + visual_tokens}"
            have = f"the text model has {text.max_position_embeddings} positions"
            raise hub.ModelError(f"{have}, but {what}: lower extractor.max_tokens")
        self.text = BertModel(text, add_pooling_layer=False)
        self.image = ResNetModel(image)
        self.width, self.channels = text.hidden_size, list(image.hidden_sizes or ())[-1]
        self.project = nn.Sequential(nn.Linear(self.channels, self.width), nn.LayerNorm(self.width))
        for name in ("pixel_mean", "pixel_std"):
            self.register_buffer(name, torch.tensor(settings[name]).view(1, 3, 1, 1))

    def feature_map(self, pixels: Tensor) -> Tensor:
        """Return the CNN's last feature map: uint8 [n, 3, s, s] -> [n, C, s/32, s/32]."""
        values = (pixels.to(self.pixel_mean.dtype) / 255 - self.pixel_mean) / self.pixel_std
        return self.image(pixel_values=values).last_hidden_state

    def read(self, ids: Tensor, mask: Tensor, visual: Tensor) -> Tensor:
        """Return the first word's output [n, width] for words (ids, mask int64 [n, L]) and visual tokens [n, V, width].

        The positions of visual tokens start after the longest possible text, so that padding has no effect.
        """
        n, length = ids.shape
        places = torch.cat([torch.arange(length), self.max_tokens + torch.arange(visual.shape[1])]).to(ids.device)
        places, kinds = places.expand(n, -1), (places >= self.max_tokens).long().expand(n, -1)
        tokens = torch.cat([self.text.embeddings.word_embeddings(ids), visual], 1)
        seen = torch.cat([mask, mask.new_ones(n, visual.shape[1])], 1)
        found = self.text(inputs_embeds=tokens, attention_mask=seen, position_ids=places, token_type_ids=kinds)
        return found.last_hidden_state[:, 0]

    @abstractmethod
    def query(self, images: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Return f_qry [n, width] of images (uint8, prepared by the extractor) and words int64 [n, L]."""

    @abstractmethod
    def target(self, images: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Return f_tar [n, width] of images; ids, mask: the words of an empty text, [1, L]."""


class JointExtractor(Fittable):
    """Joint model of image and text: its store has query and target rows and needs no composer."""

    tables: ClassVar[tuple[str, ...]] = ("query", "target")
    built_with: ClassVar[tuple[str, ...]] = ()  # options besides the backbones' that define the network
    stated: ClassVar[tuple[str, ...]] = ("model",)
    # used only in fitting; also in a fitted folder's config.json
    execution_only: ClassVar[tuple[str, ...]] = tuple(
        name for name in JointOptions.model_fields if name not in ("model", *ExtractorOptions.model_fields)
    )
    Network: ClassVar[type[JointNetwork]]
    options: JointOptions
    tokens: Tokens
    network: JointNetwork

    def __init__(self, options: JointOptions, device: torch.device):
        super().__init__(options, device)
        if options.model is None:
            fix = "run fit-extractor on this spec, or name a folder that it made (--set extractor.model=DIR)"
            raise hub.ModelError(f"extractor {self.name!r} has no published weights: {fix}")
        self.checkpoint = checkpoint = hub.locate(options.model)
        self.settings = checkpoint.json("config.json")
        if self.settings.get("network") != self.name:
            raise hub.ModelError(f"model folder {options.model!r} holds no {self.name}: fit-extractor makes one")
        if adapter_weights(checkpoint):
            what = f"which extractor {self.name!r} does not apply: merge it first"
            raise hub.ModelError(f"model folder {options.model!r} has an adapter, {what}")
        tokenizer = hub.load_tokenizer(checkpoint)
        self._set(self.Network(self.settings), tokenizer)  # type: ignore[call-arg]
        try:
            weights = load_file(checkpoint.weights[0])
            if why := misfit(self.network.state_dict(), weights):
                raise ValueError(why)
            self.network.load_state_dict(weights)
        except (ValueError, RuntimeError, SafetensorError) as error:
            what = f"cannot be loaded: {on_one_line(error, 300)}; fit it again"
            raise hub.ModelError(f"model {options.model!r} {what}") from error
        self.network.to(device, self.compute).eval().requires_grad_(False)

    def _set(self, network: JointNetwork, tokenizer: Any) -> None:
        self.network, self.tokenizer = network, tokenizer
        self.tokens = Tokens(tokenizer, network.max_tokens, name=self.name)
        self.empty = self.tokens.encode([""])
        source, licence = self.options.model or "fit-extractor", "that of the weights it was fitted from"
        dims = dict.fromkeys(self.tables, network.width)
        self.card = Card(licence, source, self.options.contaminated_on, dims=dims)

    @classmethod
    def starts_from(cls, options: ExtractorOptions) -> bool:
        return options.model is None  # type: ignore[attr-defined]

    @classmethod
    def origin(cls, options: ExtractorOptions) -> dict[str, Any]:
        assert isinstance(options, JointOptions)
        named = (("text", options.text_model), ("image", options.image_model))
        return {part: hub.origin(hub.locate(name)) for part, name in named if name}

    @classmethod
    def fresh(cls, options: ExtractorOptions, device: torch.device, texts: Sequence[str]) -> Self:
        from pipeline.extraction.pretrain import build_tokenizer

        assert isinstance(options, JointOptions)
        made = cls.__new__(cls)
        Fittable.__init__(made, options.model_copy(update={"dtype": "float32"}), device)
        text, image = (hub.locate(name) if name else None for name in (options.text_model, options.image_model))
        words = (texts, options.vocabulary, options.max_tokens)
        tokenizer = hub.load_tokenizer(text) if text else build_tokenizer(*words)
        made.settings = {name: getattr(options, name) for name in ("max_tokens", *cls.built_with)}
        made.settings |= {name: list(getattr(options, name)) for name in ("pixel_mean", "pixel_std")}
        made.settings |= {"network": made.name, "version": cls.version}
        made.settings["text"] = _config(text, "bert") or _bert(options, len(tokenizer), tokenizer.pad_token_id)
        made.settings["image"] = _config(image, "resnet") or _resnet(options)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(options.fit.seed)
            network = cls.Network(made.settings)  # type: ignore[call-arg]
        cpu = torch.device("cpu")
        if text:
            start = hub.load_model(text, torch.float32, cpu, unused=("pooler.",)).state_dict()
            network.text.load_state_dict({k: v for k, v in start.items() if not k.startswith("pooler.")})
        if image:
            network.image.load_state_dict(hub.load_model(image, torch.float32, cpu).state_dict())
        made._set(network.to(device), tokenizer)
        made.starts = cls.origin(options)
        return made

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save_pretrained(folder)
        state = {name: value.detach().cpu().contiguous() for name, value in self.network.state_dict().items()}
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        text = json.dumps(self.settings, indent=2, sort_keys=True)
        (folder / "config.json").write_text(text + "\n", encoding="utf-8")

    def dim(self, table: str) -> int:
        return self.network.width

    def semantic(self) -> dict[str, Any]:
        return super().semantic() | self._of_checkpoint() | {"decode": decoder()}

    def _pixels(self, images: list[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.stack(images)).to(self.device)

    def _pair_features(self, images: list[np.ndarray], texts: list[np.ndarray]) -> Tensor:
        return self.network.query(self._pixels(images), *self.tokens.padded(texts, self.device))

    def _image_features(self, images: list[np.ndarray]) -> Tensor:
        return self.network.target(self._pixels(images), *self.tokens.padded(self.empty, self.device))

    def queries(self, images: list[Any], texts: list[Any], alpha: float) -> Tensor:
        return normalize(self._pair_features(images, texts).float(), dim=-1)


def square(image: Pillow.Image, size: int) -> np.ndarray:
    """Return the image padded to a white square, uint8 [3, size, size], neither cropped nor stretched."""
    fitted = ImageOps.pad(image, (size, size), method=Pillow.Resampling.BICUBIC, color="white")
    return np.ascontiguousarray(np.asarray(fitted, dtype=np.uint8).transpose(2, 0, 1))


def _config(checkpoint: hub.Checkpoint | None, kind: str) -> dict[str, Any] | None:
    """Return the configuration of a pretrained checkpoint. Raises ModelError for another architecture."""
    if checkpoint is None:
        return None
    found = checkpoint.json("config.json")
    if found.get("model_type") != kind:
        what = f"is of type {found.get('model_type')!r}; a {kind} model is needed"
        raise hub.ModelError(f"model {checkpoint.name!r} {what}")
    return {key: value for key, value in found.items() if key not in ("architectures", "transformers_version")}


def _bert(options: JointOptions, words: int, pad: int) -> dict[str, Any]:
    sizes = {"hidden_size": options.width, "intermediate_size": 4 * options.width, "max_position_embeddings": 512}
    counts = {"num_hidden_layers": options.layers, "num_attention_heads": options.heads, "vocab_size": words}
    dropout = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), options.dropout)
    return sizes | counts | dropout | {"pad_token_id": pad}


def _resnet(options: JointOptions) -> dict[str, Any]:
    sizes = {"embedding_size": options.image_stem, "hidden_sizes": list(options.image_widths)}
    return sizes | {"depths": list(options.image_depths), "layer_type": options.image_layer}
