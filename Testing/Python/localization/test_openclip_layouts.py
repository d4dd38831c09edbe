"""Localizers as they are published: tiny random models of the real architectures, in the real files, without a network.

BiomedCLIP (a ViT of timm, a BERT of Hugging Face), OpenAI's and LAION's CLIP, and SigLIP (attention pooling, no class
token, a bias beside the scale, SentencePiece-like texts without a start token).
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from safetensors.torch import save_file
from torch.nn import functional

from XAICLIPLib import anatomy
from XAICLIPLib.errors import InputError
from XAICLIPLib.imaging.phantom import torso_phantom
from XAICLIPLib.localization import learned_prompts
from XAICLIPLib.localization.crops import crop_embeddings
from XAICLIPLib.localization.dense import dense_embeddings, has_patch_tokens
from XAICLIPLib.localization.learned_prompts import BACKGROUND, LearnedPrompts
from XAICLIPLib.localization.localizer import ClipLocalizer, Settings
from XAICLIPLib.localization.openclip import ImageTextModel, import_open_clip, load_model

for package in ("timm", "transformers"):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"the towers of BiomedCLIP and SigLIP need {package}", allow_module_level=True)
import_open_clip()  # first: it knows what torchvision needs
transformers: Any = importlib.import_module("transformers")

CPU = torch.device("cpu")
PREPROCESS = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
WORDS = (
    "a an x ct mr axial slice image of the on liver spleen left right kidney background pancreas scan showing".split()
)


def write(folder: Path, model_cfg: dict[str, Any], seed: int = 0) -> Path:
    """Random weights and configuration, as open_clip writes them; what the text tower needs lies there already."""
    folder.mkdir(exist_ok=True)
    open_clip = import_open_clip()
    torch.manual_seed(seed)
    cfg = json.loads(json.dumps(model_cfg))
    if "hf_model_name" in cfg["text_cfg"]:
        cfg["text_cfg"] |= {"hf_model_name": str(folder), "hf_model_pretrained": False}
    kind = (
        open_clip.CustomTextCLIP
        if cfg.pop("custom_text", False) or "hf_model_name" in cfg["text_cfg"]
        else open_clip.CLIP
    )
    model = kind(**cfg)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    text = json.dumps({"model_cfg": model_cfg, "preprocess_cfg": PREPROCESS})
    (folder / "open_clip_config.json").write_text(text, encoding="utf-8")
    return folder


def write_tokenizer(folder: Path) -> None:
    """The files of a real BERT tokenizer, with a small vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    transformers.BertTokenizerFast.from_pretrained(folder).save_pretrained(folder)


def write_bert(folder: Path) -> None:
    """The architecture of a small BERT, as it lies beside BERT's weights."""
    bert = transformers.BertConfig(
        vocab_size=5 + len(WORDS),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    bert.save_pretrained(folder)


def biomedclip(folder: Path, tokenizer: str = "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract") -> Path:
    """As in microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224."""
    write_bert(folder)
    write_tokenizer(folder if "/" in tokenizer else folder / tokenizer)
    hub = "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract"
    text = {"hf_model_name": hub, "hf_tokenizer_name": tokenizer, "hf_proj_type": "mlp"}
    text |= {"hf_pooler_type": "cls_last_hidden_state_pooler", "context_length": 32}
    vision = {"timm_model_name": "test_vit", "timm_model_pretrained": False, "timm_pool": "", "timm_proj": "linear"}
    return write(folder, {"embed_dim": 24, "vision_cfg": vision | {"image_size": 160}, "text_cfg": text})


def openai(folder: Path) -> Path:
    """As in ViT-B-32 of OpenAI, with its activation, and of LAION."""
    vision = {"image_size": 64, "patch_size": 16, "width": 32, "head_width": 16, "layers": 2}
    text = {"context_length": 32, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
    return write(folder, {"embed_dim": 24, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text})


def siglip(folder: Path) -> Path:
    """As in timm/ViT-B-16-SigLIP."""
    write_tokenizer(folder)
    vision = {"timm_model_name": "test_vit3", "timm_model_pretrained": False, "timm_pool": "map", "timm_proj": "none"}
    text = {"context_length": 32, "vocab_size": 5 + len(WORDS), "width": 64, "heads": 2, "layers": 2}
    text |= {"no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6}}
    text |= {"hf_tokenizer_name": "timm/ViT-B-16-SigLIP", "tokenizer_kwargs": {"clean": "canonicalize"}}
    model: dict[str, Any] = {"embed_dim": 96, "init_logit_bias": -10, "init_logit_scale": 2.3, "custom_text": True}
    return write(folder, model | {"vision_cfg": vision | {"image_size": 160}, "text_cfg": text})


LAYOUTS = {"BiomedCLIP": biomedclip, "OpenAI": openai, "SigLIP": siglip}


@pytest.fixture(scope="module", params=LAYOUTS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("models") / request.param
    made.mkdir()
    return LAYOUTS[request.param](made)


@pytest.fixture(scope="module")
def model(folder: Path) -> ImageTextModel:
    return load_model(f"local-dir:{folder}", CPU)


def test_nothing_asks_another_machine(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where the hub may be asked."""
    from huggingface_hub import constants

    asked: list[Any] = []

    def refuse(*where: Any, **_named: Any) -> Any:
        asked.append(where)
        raise OSError("no network in this test")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    load_model(folder, CPU).tokenize(["the liver"])
    assert asked == []


def test_the_weights_are_those_of_the_file(folder: Path, model: ImageTextModel) -> None:
    from safetensors.torch import load_file

    written, found = load_file(folder / "open_clip_model.safetensors"), model.model.state_dict()
    assert written.keys() == found.keys()
    assert all(torch.equal(written[key], found[key]) for key in written)


@torch.inference_mode()
def test_words_are_told_apart(model: ImageTextModel) -> None:
    tokens = model.tokenize(["the liver", "the spleen"])
    assert tokens.shape == (2, 32)
    liver, spleen = functional.normalize(model.model.encode_text(tokens), dim=-1)
    assert float((liver - spleen).norm()) > 1e-3


@torch.inference_mode()
def test_patches_lie_in_the_joint_space_or_crops_do(model: ImageTextModel, folder: Path) -> None:
    images = torch.randn(2, 3, model.side, model.side, generator=torch.Generator().manual_seed(0))
    width = model.model.encode_text(model.tokenize(["liver"])).shape[1]
    if (
        folder.name == "SigLIP"
    ):  # its pooled token comes from an attention over the patches, and there is no class token
        assert not has_patch_tokens(model.model.visual)
        patches = crop_embeddings(model.model.encode_image, images)
    else:
        pooled, patches = dense_embeddings(model.model.visual, images)
        torch.testing.assert_close(pooled, model.model.encode_image(images))
    assert patches.shape[0] == 2 and patches.shape[3] == width
    torch.testing.assert_close(patches.norm(dim=-1), torch.ones(patches.shape[:3]))


def test_a_bias_of_the_sigmoid_loss_changes_no_softmax(model: ImageTextModel) -> None:
    """All classes would get the same."""
    bias = getattr(model.model, "logit_bias", None)
    cosines = torch.tensor([0.3, 0.1, -0.2])
    with_bias = model.scale * cosines + (0.0 if bias is None else bias.detach())
    torch.testing.assert_close(with_bias.softmax(0), (model.scale * cosines).softmax(0))


def test_a_volume_gets_a_map_and_learned_prompts_change_it(model: ImageTextModel) -> None:
    scan = torso_phantom(3).image
    settings = Settings(contrasts=("spleen", "left kidney"), slice_mm=60.0, wordings=1)
    plain, liver = ClipLocalizer(model, settings), anatomy.structure("liver")
    first = plain.locate(scan, liver, "CT")
    generator = torch.Generator().manual_seed(1)
    begin = learned_prompts.initial_vectors(model, 4, "CT")
    vectors = {
        name: begin + 5 * begin.std() * torch.randn(begin.shape, generator=generator) for name in ("liver", BACKGROUND)
    }
    second = plain.with_prompts(LearnedPrompts(vectors, "CT")).locate(scan, liver, "CT")
    a, b = sitk.GetArrayFromImage(first), sitk.GetArrayFromImage(second)
    assert a.shape == b.shape and np.isfinite(a).all() and a.min() >= 0 and a.max() <= 1
    assert np.abs(a - b).max() > 1e-4


# --- BiomedCLIP's folder


def test_a_tokenizer_may_lie_in_a_folder_inside(tmp_path: Path) -> None:
    made = biomedclip(tmp_path, tokenizer="words")
    assert not (tmp_path / "vocab.txt").exists()
    assert load_model(made, CPU).tokenize(["the liver"])[0, :4].tolist() == [
        2,
        5 + WORDS.index("the"),
        5 + WORDS.index("liver"),
        3,
    ]


@pytest.mark.parametrize(
    ("lost", "told"),
    [(("config.json",), "architecture"), (("tokenizer.json", "tokenizer_config.json", "vocab.txt"), "tokenizer")],
)
def test_what_the_folder_lacks_is_told_and_not_downloaded(tmp_path: Path, lost: tuple[str, ...], told: str) -> None:
    made = biomedclip(tmp_path)
    for name in lost:
        (made / name).unlink(missing_ok=True)
    with pytest.raises(InputError, match=f"lacks the {told}.*BiomedBERT.*put its {lost[0]} beside"):
        load_model(made, CPU)


def test_an_image_tower_of_the_hub_is_refused(tmp_path: Path) -> None:
    made = biomedclip(tmp_path)
    path = made / "open_clip_config.json"
    config = json.loads(path.read_text())
    config["model_cfg"]["vision_cfg"]["timm_model_name"] = "hf-hub:nobody/tower"
    path.write_text(json.dumps(config))
    with pytest.raises(InputError, match="names hf-hub:nobody/tower as its image tower"):
        load_model(made, CPU)


@pytest.mark.parametrize("asks", [False, True])
def test_code_beside_a_tokenizer_does_not_run(tmp_path: Path, asks: bool) -> None:
    """Even where the configuration asks for trust."""
    made, proof = biomedclip(tmp_path / "model"), tmp_path / "proof"
    (made / "evil.py").write_text(f"import os\nos.mkdir({str(proof)!r})\nclass Evil: pass\n", encoding="utf-8")
    path = made / "tokenizer_config.json"
    config = json.loads(path.read_text())
    path.write_text(
        json.dumps(config | {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}})
    )
    if asks:
        path = made / "open_clip_config.json"
        config = json.loads(path.read_text())
        config["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {"trust_remote_code": True}
        path.write_text(json.dumps(config))
    try:
        load_model(made, CPU).tokenize(["the liver"])
    except InputError as error:
        assert "\n" not in str(error)
    assert not proof.exists()
    assert "evil" not in sys.modules


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is asked on the terminal, where someone would say yes to all."""
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda question="": asked.append(question) or "y")
    return asked


def names_code(path: Path, key: str, proof: Path) -> None:
    """Make a configuration lead to code that leaves a folder where it runs."""
    code = f"import os\nos.mkdir({str(proof)!r})\nfrom transformers import PretrainedConfig\n"
    (path.parent / "evil.py").write_text(
        code + "class C(PretrainedConfig):\n    model_type = 'evil'\n", encoding="utf-8"
    )
    leads = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.C"}}
    if key == "configuration_files":
        (path.parent / "config.4.0.0.json").write_text(json.dumps(leads), encoding="utf-8")
        leads = {key: ["config.4.0.0.json"]}
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | leads), encoding="utf-8")


@pytest.mark.parametrize("key", ["auto_map", "configuration_files"])
@pytest.mark.parametrize("name", ["config.json", "words/tokenizer_config.json"])
def test_a_configuration_that_names_code_is_refused_and_nothing_is_asked(
    tmp_path: Path, terminal: list[str], name: str, key: str
) -> None:
    made = biomedclip(tmp_path / "model", tokenizer="words")
    names_code(made / name, key, tmp_path / "proof")
    with pytest.raises(
        InputError, match=rf"{name.rpartition('/')[2]} has {key}|config\.4\.0\.0\.json has auto_map"
    ) as told:
        load_model(made, CPU)
    assert "\n" not in str(told.value) and terminal == [] and not (tmp_path / "proof").exists()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for the hub: OWNER/NAME/FILE."""
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError

    def download(repo_id: str, filename: str, **_named: Any) -> str:
        if not (tmp_path / "hub" / repo_id / filename).is_file():
            raise EntryNotFoundError(f"no {filename} in {repo_id}")
        return str(tmp_path / "hub" / repo_id / filename)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(importlib.import_module("open_clip.pretrained"), "hf_hub_download", download)
    return tmp_path / "hub"


@pytest.mark.parametrize("tokenizer", ["tokenizer.json", "vocab.txt"])
def test_a_model_of_the_hub_and_what_it_names_there_are_loaded(hub: Path, tmp_path: Path, tokenizer: str) -> None:
    """As BiomedCLIP: the text tower's repository is another one, and holds the words of its tokenizer alone."""
    expected = load_model(biomedclip(tmp_path / "folder"), CPU)
    hub.joinpath("some").mkdir(parents=True)
    (tmp_path / "folder").rename(hub / "some" / "clip")
    bert = hub / "microsoft" / "BiomedNLP-BiomedBERT-base-uncased-abstract"
    bert.mkdir(parents=True)
    for name in ("config.json", tokenizer):
        (hub / "some" / "clip" / name).rename(bert / name)
    found = load_model("hf-hub:some/clip", CPU)
    texts = ["the liver", "An X-shaped kidney, right"]
    assert torch.equal(found.tokenize(texts), expected.tokenize(texts))
    assert all(torch.equal(a, b) for a, b in zip(found.model.parameters(), expected.model.parameters(), strict=True))
    assert (found.side, found.mean, found.std, found.folder) == (expected.side, expected.mean, expected.std, None)


def test_a_text_tower_of_the_hub_that_names_code_is_refused_and_nothing_is_asked(
    tmp_path: Path, terminal: list[str], hub: Path
) -> None:
    hub.joinpath("nobody").mkdir(parents=True)
    biomedclip(tmp_path / "evil").rename(hub / "nobody" / "evil")
    tower = hub / "microsoft" / "BiomedNLP-BiomedBERT-base-uncased-abstract"
    tower.mkdir(parents=True)
    (hub / "nobody" / "evil" / "config.json").rename(tower / "config.json")
    names_code(tower / "config.json", "auto_map", tmp_path / "proof")
    with pytest.raises(InputError, match=r"config\.json of microsoft/.* has auto_map") as told:
        load_model("hf-hub:nobody/evil", CPU)
    assert "\n" not in str(told.value) and terminal == [] and not (tmp_path / "proof").exists()


# --- what a stranger's configuration may not say


class Runs:
    """A pickle that makes a folder when it is read."""

    def __init__(self, proof: Path) -> None:
        self.proof = str(proof)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.proof,)


@pytest.mark.parametrize("by", ["keywords of open_clip", "its own configuration"])
def test_a_tokenizer_that_is_a_network_unpickles_nothing(tmp_path: Path, by: str) -> None:
    """``tokenizer_class`` may name any class of transformers: a network's reads its weights."""
    made, proof = openai(tmp_path / "model"), tmp_path / "proof"
    config = json.loads((made / "open_clip_config.json").read_text())
    text = config["model_cfg"]["text_cfg"]
    text["hf_tokenizer_name"] = "tok"
    unsafe = {"weights_only": False, "use_safetensors": False}
    if by == "keywords of open_clip":
        text["tokenizer_kwargs"] = unsafe
    (made / "open_clip_config.json").write_text(json.dumps(config))
    write_bert(made / "tok")
    own = {"tokenizer_class": "BertModel"} | (unsafe if by == "its own configuration" else {})
    (made / "tok" / "tokenizer_config.json").write_text(json.dumps(own))
    torch.save({"x": Runs(proof)}, made / "tok" / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"open_clip_config\.json should have|lacks the tokenizer") as told:
        load_model(made, CPU)
    assert "\n" not in str(told.value) and not proof.exists()


@pytest.mark.parametrize("name", ["../tok", "/etc", "\\\\server\\share", "C:\\tok", "a/../../tok", "a/b/c", "..", ""])
def test_a_name_that_leads_out_of_the_folder_is_refused_untouched(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Windows a look at a path of another machine already tells that machine who looks."""
    made = biomedclip(tmp_path / "model")
    config = json.loads((made / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["hf_model_name"] = name
    (made / "open_clip_config.json").write_text(json.dumps(config))
    asked: list[str] = []
    there = Path.is_file
    monkeypatch.setattr(Path, "is_file", lambda path: (asked.append(str(path)), there(path))[1])
    with pytest.raises(InputError, match="under text_cfg hf_model_name the name of a repository"):
        load_model(made, CPU)
    assert [path for path in asked if not path.startswith(str(made))] == []


def test_of_a_text_tower_only_known_values_reach_transformers(tmp_path: Path) -> None:
    """Its kernels may be fetched by name, and so may its weights."""
    made = biomedclip(tmp_path / "model")
    config = json.loads((made / "config.json").read_text())
    code = {"_attn_implementation": "kernels-community/evil", "attn_implementation": "some/evil", "use_kernels": True}
    code |= {"quantization_config": {"quant_method": "gptq"}, "_name_or_path": "some/evil"}
    (made / "config.json").write_text(json.dumps(config | code))
    tower = load_model(made, CPU).model.text.transformer.config
    assert tower._attn_implementation in ("sdpa", "eager") and not hasattr(tower, "quantization_config")
    (made / "config.json").write_text(json.dumps(config | {"model_type": "timm_wrapper"}))
    with pytest.raises(InputError, match=r"its config\.json should have under model_type one of bert"):
        load_model(made, CPU)
