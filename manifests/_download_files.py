"""Public files that ``manifests.downloads`` fetches: addresses and accepted digests.

Every address is pinned to a commit of the public repository. The SHA-256 digests were taken from local copies. Most
copies have the length of the pinned file and the same text at the end; other cases are commented. The attribute files of
shirt and toptee are the same for train and val, so both are fetched from the train address; the toptee train sessions
are pinned in the repository's older folder, where the public index has them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_HOST = "https://raw.githubusercontent.com"
_YUAN = "yfyuan01/MultiturnFashionRetrieval"
_WEN = "haokunwen/DQU-CIR"
_GUO = "XiaoxiaoGuo/fashion-retrieval"
_LEVY = "levymsn/ChatIR"


@dataclass(frozen=True)
class RemoteFile:
    """Public file. A copy is valid if its SHA-256 is one of ``sha256`` or its text has ``characters`` characters."""

    path: str  # below the data folder; the first part is the dataset's folder
    url: str
    upstream: str  # path in the public repository
    sha256: tuple[str, ...]
    characters: int | None = None  # for a public file without a known digest
    notes: tuple[tuple[str, str], ...] = ()  # (digest, remark on that copy)


def _files(
    dataset: str,
    repository: str,
    commits: Mapping[str, Mapping[str, str]],
    folder: str = "",
    moved: Mapping[str, str] | None = None,
) -> tuple[RemoteFile, ...]:
    """Return the files of a dataset. ``commits``: commit -> path below the dataset's folder -> SHA-256.

    Their path in the repository is the same, or below ``folder``, or that of ``moved``.
    """
    found = []
    for commit, digests in commits.items():
        for path, digest in digests.items():
            above = (moved or {}).get(path, f"{folder}/{path}" if folder else path)
            url = f"{_HOST}/{repository}/{commit}/{above}"
            found.append(RemoteFile(f"{dataset}/{path}", url, above, (digest,)))
    return tuple(found)


# attr/asin2attr.dress.train.new.json: the pinned file could not be compared; its address follows from its neighbors.
MT_FASHIONIQ = _files(
    "mt_fashioniq",
    _YUAN,
    {
        "cf5fcc0a17e77273fb7e8ddd6e611c29979fd682": {
            "data/dress.train.json": "910382f8ba5114f911be3068aeff217cfbbd9691a264455b98662c296dc636a7",
            "data/dress.val.json": "0fab57ee66f28054e3546eb676b42b083e66eb4ae45607b2a425ab078154e3df",
            "data/shirt.train.json": "0ce0dc3ecf18535bc78695c67709e355e990751ecc257e63681766f08b97c103",
        },
        "c3549d881a8b9c995eeefa59dbdfbe27c6aa69a3": {
            "data/shirt.val.json": "95279d8c36e7e14eb55bd98e4a2200d0fec5f61413617d3470cfd47d6cb9f332",
            "image_splits/split.dress.train.json": "9ad820deefeec6de4af957c47bd9d7023451d07e1561ab5fa689aa05b7a45005",
            "image_splits/split.dress.val.json": "643d22f7df5fe3a5ea1be7c3a496ea3226ef177f14e3de5ee210545f761c5d6b",
            "image_splits/split.shirt.train.json": "576b52b609b390b9324972d7d1a59e4d4b7b46aa4e3ee69da13ad37935a383ce",
            "image_splits/split.shirt.val.json": "56d3b88525040fab12558164ea31e19423e7fe22daedc8f541452e2cfdd6f87e",
            "image_splits/split.toptee.val.json": "76e09428cd3eb1bd8c4077ff5c2e022497abed2b40296edb742da7d0997e0811",
        },
        "4aaf5e7368b1d6bd433bb8c3e68bf36f4fb60bde": {
            "data/toptee.train.json": "885c671630d786de02c5d29d087c4ea2b5a1ba8fe725080a1e4d600c9d8327ed"
        },
        "f1c21928d2724c91ff8118789e6816582b9b7170": {
            "data/toptee.val.json": "5e834d286496590e763dfa00ec3657fe6a41d1e9e9947c1266d0c300d2def75b"
        },
        "e6de7a2278089600512ab019dba4ace8275b3ddf": {
            "image_splits/split.toptee.train.json": "05dcf470d7cfd258a9b6ce538e3ce11201b77356beefaaa503707c3585f09068"
        },
        "4bb2ed9939fa620db9bee1c17247c9577f700afe": {
            "attr/asin2attr.dress.train.new.json": "ab647c2ab586c3a622da4a64770cac88aee645ce893720e20f4a11cfc02e5885",
            "attr/asin2attr.dress.val.new.json": "29bbb522cf6f4e1dedf562afbc147f23e9713a0d81a49e69ef2801dc2cbdab38",
            "attr/asin2attr.shirt.train.new.json": "3b8d1751a28c0e3f615c27007a09e6123a28321418285d77515ace5f8f8ded41",
            "attr/asin2attr.shirt.val.new.json": "3b8d1751a28c0e3f615c27007a09e6123a28321418285d77515ace5f8f8ded41",
            "attr/asin2attr.toptee.train.new.json": "e2ca7d704e5555b969c84a04acbcd57cbfb8e03fe451ae7a29c89287132757eb",
            "attr/asin2attr.toptee.val.new.json": "e2ca7d704e5555b969c84a04acbcd57cbfb8e03fe451ae7a29c89287132757eb",
        },
    },
    moved={
        "data/toptee.train.json": "Multiturn/toptee.train.json",
        "attr/asin2attr.shirt.val.new.json": "attr/asin2attr.shirt.train.new.json",
        "attr/asin2attr.toptee.val.new.json": "attr/asin2attr.toptee.train.new.json",
    },
)

# BLIP-2 captions of FashionIQ images, published with DQU-CIR (Apache-2.0).
BLIP2_CAPTIONS = _files(
    "blip2_captions",
    _WEN,
    {
        "daad2330f2859bdf739a54ede68f221353eaabbc": {
            "image_captions_dress_train.json": "34d9e59ea1614a323d13fd4d2ac731e55a6d0e9291168aab606d3cc0d86b93a4",
            "image_captions_dress_val.json": "0eb5afb4a749b87ed309a43405dfd6ce68030d227f754a0077e51cfb12ba4be8",
            "image_captions_shirt_train.json": "0691d5e2b6f53826ffc69a284de40a3cdd69fa2b81c57b4c2fd81d2244fa0474",
            "image_captions_shirt_val.json": "82219bf0797cf95bfd9cd6246bf4352a69c019f7da9bcba59ebf2d577c75201c",
            "image_captions_toptee_train.json": "87e5eccb8e7ff4763f9901ef58ef39150c82baf5a8dca9df7a4bfc0a9c501637",
            "image_captions_toptee_val.json": "5175de1ff4a25b3600b1b0db73d3bf3756c26313d7477e88495ba0536d6ef537",
        }
    },
    "data/FashionIQ/captions",
)

_SHORTER = "addfa71028aee46d1173397ed6d15b5aaacb858494d9747c91511784e627fe70"
_WITH_BREAKS = "56e5024c75e4178157fb516b893539679543337c2e8557b02405a5bd3c59878e"
SHOES = (
    RemoteFile(  # only the length of the pinned file is known
        "shoes/relative_captions_shoes.json",
        f"{_HOST}/{_GUO}/58f6aa9908d319c5d9b3c480dd3a42682ff4e2be/dataset/relative_captions_shoes.json",
        "dataset/relative_captions_shoes.json",
        (_SHORTER,),
        1_601_188,
        ((_SHORTER, "a copy with the 8,990 train edges of the public file's 10,751: it gives no test sessions"),),
    ),
    *_files(
        "shoes",
        _GUO,
        {
            "2b24f270648e1f5e83fb19f2d459fbfd5737f443": {
                "train_im_names.txt": "dd7f58d8d65f95c17c585cd62efd3038a8a6ed4d8ee0d6153287f75b76d1c64f"
            },
            "53c9a2b06af59e8cab27dba9b4d65830937235c1": {
                "eval_im_names.txt": "f1fd756f9c9841119c2d601994f16338f4e9b8f2846aaec0748ba873654548f3"
            },
        },
        "dataset",
    ),
    RemoteFile(  # the pinned file is the second copy without its line breaks
        "shoes/image_captions_shoes.json",
        f"{_HOST}/{_WEN}/8b5ddbdd6696dc3ea0d0bcd05b2de466f9019211/data/Shoes/image_captions_shoes.json",
        "data/Shoes/image_captions_shoes.json",
        ("3bde8b308bf86fbd1f33dd9f87044c558a0c685b187dbe3f06d3255b78bd93ce", _WITH_BREAKS),
        None,
        ((_WITH_BREAKS, "a copy with line breaks added; the content is that of the public file"),),
    ),
)

CHATIR = _files(
    "chatir",
    _LEVY,
    {
        "f5a4b908643d5fcd946187da8f20c0667afbe2e5": {
            "VisDial_v1.0_queries_val.json": "6db15734e21df441c932b84cf538ba660350e82dcb18e5d3ab8d0f99691cd210"
        }
    },
    "dialogues",
)

FILES: dict[str, tuple[RemoteFile, ...]] = {
    "mt_fashioniq": MT_FASHIONIQ,
    "blip2_captions": BLIP2_CAPTIONS,
    "shoes": SHOES,
    "chatir": CHATIR,
}
