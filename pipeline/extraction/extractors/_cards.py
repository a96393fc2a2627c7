"""Cards of published checkpoints by short name; ``ls extractors --long`` prints them.

Sources: public model pages, license files, configuration files, and loading code.
``contaminated_on`` refers to test pairs: SPRC's and SPN4CIR's checkpoints were fitted on FashionIQ's triplets, and GME's
training data contains them. The content of general web crawls is unknown.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pipeline.extraction import hub
from pipeline.extraction.extractors.base import Card

_APACHE = "Apache-2.0"
_OPENAI = "License of github.com/openai/CLIP; its training images (400M from the web) are not published"
_LAION = "trained on LAION-2B; license of the model page"
_SIGLIP = "trained on WebLI"
_SIGLIP2 = f"{_SIGLIP}; texts lower-cased, 64 tokens"
_FIXED = f"fixed resolution, loads as SiglipModel; {_SIGLIP2}"
_NAFLEX = (
    "ViT-B/16, loads as Siglip2Model; keeps the aspect ratio: patches up to max_num_patches of its image processor, the rest "
    f"masked; {_SIGLIP2}"
)
_FASHION = "FashionCLIP: CLIP ViT-B/32 fine-tuned on 800,000 Farfetch products (version 2 from a LAION checkpoint)"
_MARQO = (
    "SigLIP ViT-B/16 fine-tuned on over a million fashion products; comes with its own code, which is run only with "
    "trust_remote_code = true and needs the package open_clip_torch; texts are lower-cased and stripped of punctuation, as "
    "its own processor does. Its code builds the weights while the model is initialized, which newer transformers may "
    "refuse: a folder in SiglipModel's format needs neither"
)
_MINILM = "6 layers, texts of up to 256 word pieces; the captions' own license comes on top"
_BGE_VL = "trained on MegaPairs; composer fusion with alpha 0.5 and raw, extractor.normalise = false: the sum of both"
_GME = "without its own code; its training data includes M-BEIR, and with it FashionIQ's train triplets"
_QWEN3 = "Matryoshka: extractor.dim from 64; the content of its training data is not published in full"
_PROCIR = "a folder of the checkpoint that the ProCIR authors link (arXiv 2604.10297)"
_FASHIONMV = (
    "0.8B, Qwen3.5; trained on FashionMV (DeepFashion, Fashion200K, FashionGen); whether its images overlap with FashionIQ's "
    "is not published, so it is marked as contaminated"
)
_SPRC = (
    "EVA ViT-g/14 (1408 wide, 39 layers, 224 px) and BLIP-2's Q-Former with 32 query tokens; the file fitted on FashionIQ "
    "has seen many of Multi-turn FashionIQ's test pairs; that on CIRR has not (trained_on)"
)
_SPRC_TERMS = "SPN4CIR: MIT; SPRC: none stated in its repository; LAVIS, on which both build: BSD-3-Clause"
_SPN4CIR = "SPRC with a second stage on scaled negatives: a Q-Former and a projection of its own for queries"
_FASHIONIQ = ("mt_fashioniq",)


def _dual(name: str, licence: str, hub: str, dim: int, notes: str, clean: str = "") -> Card:
    return Card(licence, hub, notes=notes, name=name, dims={"image": dim, "text": dim}, clean=clean)


CLIP = (
    _dual("clip-b32", "MIT", "openai/clip-vit-base-patch32", 512, f"ViT-B/32, 224 px. {_OPENAI}"),
    _dual("clip-b16", "MIT", "openai/clip-vit-base-patch16", 512, f"ViT-B/16, 224 px. {_OPENAI}"),
    _dual("clip-l14", "MIT", "openai/clip-vit-large-patch14", 768, f"ViT-L/14, 224 px. {_OPENAI}"),
    _dual("fashionclip", "MIT", "patrickjohncyh/fashion-clip", 512, _FASHION),
    _dual("laion-b32", "MIT", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K", 512, f"ViT-B/32, 224 px; {_LAION}"),
    _dual("laion-h14", "MIT", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K", 1024, f"ViT-H/14, 224 px; {_LAION}"),
    _dual("siglip-base", _APACHE, "google/siglip-base-patch16-224", 768, f"ViT-B/16, 224 px; {_SIGLIP}"),
    _dual("siglip2-base", _APACHE, "google/siglip2-base-patch16-224", 768, f"ViT-B/16, 224 px, {_FIXED}. The default"),
    _dual("siglip2-so400m", _APACHE, "google/siglip2-so400m-patch14-384", 1152, f"So400m/14, 384 px, {_FIXED}"),
    _dual("siglip2-base-naflex", _APACHE, "google/siglip2-base-patch16-naflex", 768, _NAFLEX),
    _dual("bge-vl-base", "MIT", "BAAI/BGE-VL-base", 512, f"BGE-VL-base, CLIP ViT-B/16; {_BGE_VL}"),
    _dual("bge-vl-large", "MIT", "BAAI/BGE-VL-large", 768, f"BGE-VL-large, CLIP ViT-L/14; {_BGE_VL}"),
    _dual("marqo-fashionsiglip", _APACHE, "Marqo/marqo-fashionSigLIP", 768, _MARQO, "canonical"),
)

CAPTION = (_dual("minilm", _APACHE, "sentence-transformers/all-MiniLM-L6-v2", 384, _MINILM),)


def _joint(name: str, licence: str, hub: str, dim: int, notes: str, seen: tuple[str, ...] = ()) -> Card:
    return Card(licence, hub, seen, notes, name, {"query": dim, "target": dim})


MLLM = (
    _joint("qwen3-vl-embedding-2b", _APACHE, "Qwen/Qwen3-VL-Embedding-2B", 2048, f"2B, 28 layers; {_QWEN3}"),
    _joint("qwen3-vl-embedding-8b", _APACHE, "Qwen/Qwen3-VL-Embedding-8B", 4096, f"8B, 36 layers; {_QWEN3}"),
    _joint("gme-2b", _APACHE, "Alibaba-NLP/gme-Qwen2-VL-2B-Instruct", 1536, f"2B, {_GME}", _FASHIONIQ),
    _joint("gme-7b", _APACHE, "Alibaba-NLP/gme-Qwen2-VL-7B-Instruct", 3584, f"7B, {_GME}", _FASHIONIQ),
    _joint("procir", "see the model's page", _PROCIR, 1024, _FASHIONMV, _FASHIONIQ),
)

_STARTS = "starting weights: google-bert/bert-base-uncased (768, Apache-2.0) and microsoft/resnet-50 (2048, Apache-2.0)"
_UNCHECKED, _FIT = "no public weights in a format that could be checked", "fit-extractor SPEC"
_VLP = f"after FashionVLP (CVPR 2022), the paper's single-turn model; {_STARTS}"
FASHIONBERT = (_joint("fashionbert", _UNCHECKED, _FIT, 768, f"after FashionBERT (SIGIR 2020); {_STARTS}"),)
FASHIONVLP = (_joint("fashionvlp", "no public weights", _FIT, 768, _VLP),)

_FILE = "the .pt file linked from github.com/"
SPRC = (
    _joint("sprc", _SPRC_TERMS, f"{_FILE}chunmeifeng/SPRC", 256, _SPRC, _FASHIONIQ),
    _joint("spn4cir-sprc", "MIT", f"{_FILE}BUAADreamer/SPN4CIR", 256, _SPN4CIR, _FASHIONIQ),
)


def card_of(known: Card | None, model: str, contaminated_on: tuple[str, ...]) -> Card:
    """Return the card of ``model``: ``known``, or one that names its page, with the user's declaration."""
    return replace(known or Card("see the model's page", model), contaminated_on=contaminated_on)


def preset(cards: tuple[Card, ...], model: str) -> Card | None:
    """Return the card of a short name or hub id; None for other models."""
    return next((card for card in cards if model in (card.name, card.source)), None)


def located(cards: tuple[Card, ...], options: Any) -> tuple[Card | None, hub.Checkpoint]:
    """Return (card of ``options.model`` or None, its checkpoint). Raises ModelError, see ``hub.locate``."""
    known, own_code = preset(cards, options.model), getattr(options, "trust_remote_code", False)
    return known, hub.locate(known.source if known else options.model, options.revision, own_code)
