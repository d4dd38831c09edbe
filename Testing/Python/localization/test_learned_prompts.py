"""Learned prompts: vectors in the place of words, in files that are only for their own model."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from XAICLIPLib import anatomy
from XAICLIPLib.anatomy import structure
from XAICLIPLib.errors import InputError
from XAICLIPLib.localization import PROMPTS_FILE, learned_prompts
from XAICLIPLib.localization.learned_prompts import BACKGROUND, PLACEHOLDER, LearnedPrompts
from XAICLIPLib.localization.localizer import ClipLocalizer, Settings
from XAICLIPLib.localization.openclip import ImageTextModel, import_open_clip, load_model
from XAICLIPLib.models import catalogue

CPU = torch.device("cpu")
CONFIG: dict[str, Any] = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 16, "head_width": 8, "layers": 1},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 2},
}
M, WIDTH = 4, 8


def write_model(
    folder: Path, seed: int = 0, text: dict[str, Any] | None = None, vision: dict[str, Any] | None = None
) -> Path:
    """A tiny model as open_clip writes it; with ``text``, its text tower is a module of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads(json.dumps(CONFIG))
    config["text_cfg"] |= text or {}
    config["vision_cfg"] |= vision or {}
    torch.manual_seed(seed)
    open_clip = import_open_clip()
    kind = open_clip.CLIP if text is None else open_clip.CustomTextCLIP
    model = kind(**json.loads(json.dumps(config)))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    written = {"model_cfg": config | ({} if text is None else {"custom_text": True})}
    written["preprocess_cfg"] = {"mean": [0.5] * 3, "std": [0.5] * 3}
    (folder / "open_clip_config.json").write_text(json.dumps(written), encoding="utf-8")
    return folder


@pytest.fixture(scope="module", params=[None, {"pool_type": "last", "no_causal_mask": True}, {"embed_cls": True}])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ImageTextModel:
    """CLIP's own text tower, one that is not causal, and one with a class token at the end (CoCa)."""
    return load_model(write_model(tmp_path_factory.mktemp("model"), text=request.param), CPU)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> ImageTextModel:
    return load_model(write_model(tmp_path_factory.mktemp("clip")), CPU)


def vectors(*names: str, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(M, WIDTH, generator=generator) for name in names}


# --- vectors in the place of words


@torch.inference_mode()
def test_the_embeddings_of_real_words_give_what_the_words_give(model: ImageTextModel) -> None:
    words = "axial image of the"
    ids = model.tokenize([words])[0, 1 : 1 + M]
    learned = learned_prompts.token_embedding(model.model).weight[ids]
    found = learned_prompts.embed(model, {"left kidney": learned, "liver": learned})
    expected = model.model.encode_text(model.tokenize([f"{words} left kidney", f"{words} liver"]))
    torch.testing.assert_close(found, functional.normalize(expected, dim=-1))


def test_gradients_reach_the_vectors_and_each_structures_own_alone(model: ImageTextModel) -> None:
    given = {name: v.requires_grad_() for name, v in vectors("liver", "spleen").items()}
    learned_prompts.embed(model, given)[0, 0].backward()
    assert given["liver"].grad is not None and float(given["liver"].grad.abs().max()) > 0
    assert given["spleen"].grad is None or not bool(given["spleen"].grad.any())


@torch.inference_mode()
def test_no_hook_stays_even_after_a_failure(model: ImageTextModel) -> None:
    learned_prompts.embed(model, vectors("liver"))
    assert not learned_prompts.token_embedding(model.model)._forward_hooks
    with pytest.raises(RuntimeError):
        learned_prompts.embed(model, {"liver": torch.zeros(M, WIDTH + 1)})
    assert not learned_prompts.token_embedding(model.model)._forward_hooks


def test_it_begins_with_the_words_of_a_hand_written_sentence(clip: ImageTextModel) -> None:
    sentence = anatomy.templates("CT")[1].partition(" {}")[0]  # an axial CT image of the
    ids = clip.tokenize([sentence])[0, 1:7]
    table = learned_prompts.token_embedding(clip.model).weight
    assert torch.equal(learned_prompts.initial_vectors(clip, 6, "CT"), table[ids])
    assert torch.equal(learned_prompts.initial_vectors(clip, 2, "CT"), table[ids[-2:]])
    assert torch.equal(learned_prompts.initial_vectors(clip, 8, "CT"), table[torch.cat([ids[-2:], ids])])


def test_a_name_that_does_not_fit_behind_the_placeholders_is_refused(clip: ImageTextModel) -> None:
    name = int((clip.tokenize(["inferior vena cava"]) != 0).sum()) - 2  # tokens, without start and end
    fits = 16 - 2 - name
    learned_prompts.embed(clip, {"inferior vena cava": torch.zeros(fits, WIDTH)})
    for more in (1, 2, 4, 20):
        with pytest.raises(InputError, match='the name "inferior vena cava" do not fit'):
            learned_prompts.embed(clip, {"inferior vena cava": torch.zeros(fits + more, WIDTH)})


def test_a_text_tower_without_token_embedding_is_refused() -> None:
    with pytest.raises(InputError, match="no token embedding"):
        learned_prompts.token_embedding(torch.nn.Linear(2, 2))


# --- files


def test_what_is_saved_is_loaded(model: ImageTextModel, tmp_path: Path) -> None:
    given = vectors("liver", "left kidney", BACKGROUND)
    path = learned_prompts.save(LearnedPrompts(given, "CT"), model, tmp_path / "p.safetensors")
    found = learned_prompts.load(path, model)
    assert found.vectors.keys() == given.keys()
    assert all(torch.equal(found.vectors[name], given[name]) for name in given)
    assert found.provenance == {
        "file": "p.safetensors",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "modality": "CT",
        "structures": ["background", "left kidney", "liver"],
    }


def test_equal_prompts_give_equal_files(clip: ImageTextModel, tmp_path: Path) -> None:
    paths = [
        learned_prompts.save(LearnedPrompts(vectors("liver", "spleen"), "CT"), clip, tmp_path / f"{n}.safetensors")
        for n in "ab"
    ]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_prompts_of_another_model_are_refused(clip: ImageTextModel, tmp_path: Path) -> None:
    path = learned_prompts.save(LearnedPrompts(vectors("liver")), clip, tmp_path / "p.safetensors")
    other = load_model(write_model(tmp_path / "other", seed=1), CPU)
    with pytest.raises(InputError, match=r"were tuned for another model \(SHA-256 .*other has .*tune-prompts"):
        learned_prompts.load(path, other)


def test_a_model_without_a_file_is_known_by_its_tensors(clip: ImageTextModel, tmp_path: Path) -> None:
    downloaded = replace(clip, checksum="")
    path = learned_prompts.save(LearnedPrompts(vectors("liver")), downloaded, tmp_path / "p.safetensors")
    learned_prompts.load(path, downloaded)
    other = replace(load_model(write_model(tmp_path / "other", seed=1), CPU), checksum="")
    with pytest.raises(InputError, match="another model"):
        learned_prompts.load(path, other)


def changed(path: Path, about: dict[str, Any] | None = None, **tensors: Tensor) -> None:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        told = json.loads(file.metadata()["xaiclip"])
    save_file(load_file(path) | tensors, path, metadata={"xaiclip": json.dumps(told | (about or {}))})


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (lambda p: p.unlink(), "There is no file of prompts"),
        (lambda p: p.write_bytes(b"not prompts"), "is no file of prompts, or damaged"),
        (lambda p: p.write_bytes(p.read_bytes()[:-8]), "is no file of prompts, or damaged"),
        (lambda p: save_file(vectors("liver"), p), "holds no prompts"),
        (lambda p: save_file(vectors("liver"), p, metadata={"xaiclip": "[]"}), "holds no prompts"),
        (lambda p: changed(p, {"modality": "X-ray"}), "holds no prompts"),
        (lambda p: changed(p, liver=torch.zeros(M, WIDTH + 1)), "do not fit the model"),
        (lambda p: changed(p, liver=torch.zeros(WIDTH)), "do not fit the model"),
        (lambda p: changed(p, liver=torch.full((M, WIDTH), torch.nan)), "do not fit the model"),
        (lambda p: changed(p, spleen=torch.zeros(M + 1, WIDTH)), "not all of one length"),
        (lambda p: changed(p, liverr=torch.zeros(M, WIDTH)), 'No anatomical structure is called "liverr"'),
    ],
)
def test_a_file_that_is_not_as_it_should_be_is_refused(
    clip: ImageTextModel, tmp_path: Path, harm: Any, told: str
) -> None:
    path = learned_prompts.save(LearnedPrompts(vectors("liver")), clip, tmp_path / "p.safetensors")
    harm(path)
    with pytest.raises(InputError, match=told) as caught:
        learned_prompts.load(path, clip)
    assert "\n" not in str(caught.value)


def test_a_place_that_cannot_be_written_is_told(clip: ImageTextModel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        learned_prompts.save(LearnedPrompts(vectors("liver")), clip, tmp_path / "file" / "p.safetensors")


# --- in the localizer

SETTINGS = Settings(contrasts=("liver", "spleen", "left kidney", "right kidney"), wordings=2)


def test_learned_prompts_stand_for_prompt_and_contrast_alike(clip: ImageTextModel) -> None:
    given = vectors("liver", BACKGROUND)
    plain, tuned = ClipLocalizer(clip, SETTINGS), ClipLocalizer(clip, SETTINGS, LearnedPrompts(given, "CT"))
    liver, background = learned_prompts.embed(clip, given).detach()
    own, _ = tuned.class_embeddings(structure("liver"), "CT")
    spleen, _ = tuned.class_embeddings(structure("spleen"), "CT")
    torch.testing.assert_close(own[0], liver)
    torch.testing.assert_close(spleen[1], liver)
    torch.testing.assert_close(spleen[-1], background)
    before, _ = plain.class_embeddings(structure("spleen"), "CT")
    assert torch.equal(spleen[[0, 2, 3]], before[[0, 2, 3]])  # those without learned prompts keep the hand-written ones
    assert not torch.allclose(spleen[1], before[1])


def test_prompts_for_ct_leave_mr_alone(clip: ImageTextModel) -> None:
    plain, tuned = ClipLocalizer(clip, SETTINGS), ClipLocalizer(clip, SETTINGS, LearnedPrompts(vectors("liver"), "CT"))
    for modality in ("MR", None):
        asked = structure("liver"), modality
        assert torch.equal(tuned.class_embeddings(*asked)[0], plain.class_embeddings(*asked)[0])  # type: ignore[arg-type]


def test_the_record_names_the_prompts(clip: ImageTextModel, tmp_path: Path) -> None:
    assert "prompts" not in ClipLocalizer(clip, SETTINGS).provenance
    path = learned_prompts.save(LearnedPrompts(vectors("liver")), clip, tmp_path / "p.safetensors")
    told = ClipLocalizer(clip, SETTINGS, learned_prompts.load(path, clip)).provenance["prompts"]
    assert (told["file"], told["sha256"]) == (path.name, hashlib.sha256(path.read_bytes()).hexdigest())


def test_prompts_in_the_folder_are_used_and_others_where_they_are_named(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    assert catalogue.load_localizer(folder, CPU).prompts is None  # type: ignore[attr-defined]
    model = load_model(folder, CPU)
    learned_prompts.save(LearnedPrompts(vectors("liver")), model, folder / PROMPTS_FILE)
    other = learned_prompts.save(LearnedPrompts(vectors("spleen")), model, tmp_path / "mine.safetensors")
    assert catalogue.load_localizer(folder, CPU).provenance["prompts"]["structures"] == ["liver"]
    assert catalogue.load_localizer(folder, CPU, prompts=other).provenance["prompts"]["structures"] == ["spleen"]
    with pytest.raises(InputError, match="There is no file of prompts"):
        catalogue.load_localizer(folder, CPU, prompts=tmp_path / "nowhere.safetensors")


def test_prompts_in_a_folder_are_not_taken_for_its_weights(tmp_path: Path) -> None:
    """Whatever the weights are called."""
    folder = write_model(tmp_path / "model")
    model = load_model(folder, CPU)
    learned_prompts.save(LearnedPrompts(vectors("liver")), model, folder / PROMPTS_FILE)
    (folder / "open_clip_model.safetensors").rename(folder / "weights.safetensors")
    assert load_model(folder, CPU).checksum == model.checksum


def test_the_placeholder_is_a_word_of_its_own(clip: ImageTextModel) -> None:
    assert len(set(clip.tokenize([f"{PLACEHOLDER} " * 3])[0, 1:4].tolist())) == 1
