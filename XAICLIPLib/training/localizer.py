"""Train the shipped localizer: a small CLIP whose patch embeddings match the texts of what lies in them.

``python -m XAICLIPLib.training.localizer --data ../shared/data --work /tmp/localizer --steps 2500``

The image tower sees axial slices of the training subjects (CT as they are; a third of them with their grey values
remapped at random, equalised as an unknown modality would be, to stand for MR; brain MR crops). Every patch of 8 x 8
pixels is compared with one random text (template x synonym) of every class and with names of structures that are
never in the images; the loss is the cross-entropy against the shares of the classes in the patch. The text tower
starts from word embeddings of ``wordllama`` (MIT), reduced by PCA and kept fixed, so that synonyms which are not in
the training texts land near those that are. Synonyms of `HELD_OUT` are never trained on.

``--start FOLDER`` goes on from the weights in a folder instead (the first training's, for the shipped model). Half of
the slices show a part of the body.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from scipy import ndimage
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from XAICLIPLib import anatomy
from XAICLIPLib.localization.dense import dense_embeddings
from XAICLIPLib.localization.openclip import import_open_clip
from XAICLIPLib.localization.slices import window_percentiles
from XAICLIPLib.resources import resource_path
from XAICLIPLib.training import data

SIDE, PATCH, WIDTH = 160, 8, 96
CONFIG: dict[str, Any] = {
    "model_cfg": {
        "embed_dim": WIDTH,
        "vision_cfg": {"image_size": SIDE, "layers": 6, "width": 128, "head_width": 32, "patch_size": PATCH},
        "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": WIDTH, "heads": 4, "layers": 2},
    },
    "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bilinear"},
}
AVERAGED = 0.993
"""Share of the averaged weights that a step keeps."""

CHECKPOINT_STEPS = 50
TISSUES = ("lung", "bone", "fat", "air")
CLASSES = (*data.ORGANS[1:], *data.HEAD_NECK.values(), "hippocampus", *TISSUES)
"""Structures that the training images show; the background is one more class, last."""

USUAL_WIDTH_MM = 345.0
"""Mean width of the training subjects' bodies."""

CROPPED, SURROUNDED = 0.5, 0.15
"""Shares of the slices that show a part of the body, and that have a table or arms painted beside it."""

EMPHASIS = {"gallbladder": 2.0, "stomach": 1.5, "portal and splenic veins": 1.5}
"""Further weight in the loss of structures that were found too rarely."""

RARE = {"spleen": ("lien",), "stomach": ("gaster",), "gallbladder": ("vesica biliaris", "cholecyst")}
"""Synonyms that the first training held out and that a training which starts from its weights teaches."""

HELD_OUT = {
    "liver": ("hepatic gland", "hepar"),
    "spleen": ("splenic organ",),
    "left kidney": ("left renal organ", "left ren"),
    "right kidney": ("right renal organ", "right ren"),
    "pancreas": ("pancreatic gland",),
    "aorta": ("aortic vessel",),
}
"""Synonyms kept out of every training, to measure how the localizer handles unseen words."""

LEAST_PEAK = {
    "spleen": 0.5,
    "right kidney": 0.5,
    "left kidney": 0.47,
    "gallbladder": 0.45,
    "liver": 0.55,
    "stomach": 0.6,
    "aorta": 0.37,
    "inferior vena cava": 0.4,
    "portal and splenic veins": 0.33,
    "pancreas": 0.3,
    "right adrenal gland": 0.15,
    "left adrenal gland": 0.17,
}
"""Between the peaks on the validation subjects, whole and cropped, and those where the organ is not there: boxes around
other organs, below the abdomen, and head-and-neck scans of `openkbp` 14-17."""

SETTINGS: dict[str, Any] = {
    "contrasts": list(CLASSES),
    "usual_width_mm": USUAL_WIDTH_MM,
    "slice_mm": 5.0,
    "shifts": 2,
    "smoothing_mm": 5.0,
    "wordings": 8,
    "unknown_words": [word for words in HELD_OUT.values() for word in words],
    "least_peak": LEAST_PEAK,
    "threshold": 0.3,  # chosen on the validation subjects: recall of small organs at a few percent of the body
    "certain": 0.3,
}
"""How the localizer is used (`XAICLIPLib.localization.localizer.Settings`)."""


def training_phrases(name: str, rare: bool = False) -> list[str]:
    """The words for a structure that may be trained on: its phrases, and its adjectives with a noun."""
    left_out = (*HELD_OUT.get(name, ()), *(() if rare else RARE.get(name, ())))
    known = anatomy.structure(name)
    adjective_phrases = [
        f"{adjective} {noun}" for adjective in known.adjectives for noun in ("tissue", "parenchyma", "structure")
    ]
    return [p for p in (*known.phrases, *adjective_phrases) if p.lower() not in left_out]


def token_shares(image: torch.Tensor, label: torch.Tensor, kind: str) -> torch.Tensor:
    """Share of each class (last: background) in each patch, (patches, classes + 1), rows of sum 1.

    Tissues come from grey values in [0, 1] (window -125 to 275 HU) where no organ is labelled.
    """
    value = label.clone() - 1
    value[label == 0] = len(CLASSES)
    if kind != "hippocampus":
        free = label == 0
        first = len(CLASSES) - len(TISSUES)
        regions, count = ndimage.label((image < 0.03).numpy() & free.numpy())
        border = np.unique(np.concatenate([regions[0], regions[-1], regions[:, 0], regions[:, -1]]))
        sizes = ndimage.sum_labels(np.ones_like(regions), regions, np.arange(count + 1))
        outside = torch.from_numpy(np.isin(regions, border[border > 0]))
        gas = torch.from_numpy(regions > 0) & ~outside
        large = torch.from_numpy(sizes[regions] > 300)
        value[free & (image >= 0.03) & (image < 0.24)] = first + 2
        value[free & (image > 0.95)] = first + 1
        value[gas & large] = first
        value[outside | (gas & ~large)] = first + 3
    shares = functional.one_hot(value, len(CLASSES) + 1).float()
    grid = SIDE // PATCH
    return shares.reshape(grid, PATCH, grid, PATCH, -1).mean((1, 3)).reshape(grid * grid, -1)


def remap(image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Another modality's look: a random piecewise-linear map of grey values times a smooth bias field."""
    levels = torch.rand(7, generator=generator)
    levels[0] = 0.0
    position = image * 6
    index = position.floor().clamp(0, 5).long()
    mapped = levels[index] + (levels[index + 1] - levels[index]) * (position - index)
    field = functional.interpolate(
        torch.rand((1, 1, 3, 3), generator=generator) * 0.6 + 0.7, size=image.shape, mode="bicubic", align_corners=True
    )
    noise = torch.randn(image.shape, generator=generator) * 0.03
    return ((mapped * field[0, 0] + noise) * (image > 0.005)).clamp(0, 1)


def draw_batch(
    subjects: list[data.Subject], weights: torch.Tensor, size: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Slices (N, 3, side, side), normalised, and patch shares (N, patches, classes + 1), fixed by ``seed``.

    Of scans of the body a share of `CROPPED` shows a part of it (brain MRs are crops already), and `SURROUNDED` of
    the abdomens lie on a table or have arms beside them.
    """
    generator = torch.Generator().manual_seed(seed)
    images, targets = [], []
    for index in torch.multinomial(weights, size, replacement=True, generator=generator).tolist():
        subject = subjects[index]
        surrounded = subject.kind == "abdomen" and float(torch.rand((), generator=generator)) < SURROUNDED
        cropped = 0.0 if surrounded or subject.kind == "hippocampus" else CROPPED
        image, label, (pixel_mm, _) = data.random_slice(subject, SIDE, generator, cropped, USUAL_WIDTH_MM)
        if surrounded:
            image = data.add_surroundings(image, pixel_mm, generator)
        targets.append(token_shares(image, label, subject.kind))
        image = data.vary_intensity(image[None, :, :, None], label[:, :, None], generator)[0, :, :, 0]
        if subject.kind == "hippocampus" or float(torch.rand((), generator=generator)) < 0.3:
            image = image if subject.kind == "hippocampus" else remap(image, generator)
            image = torch.from_numpy(window_percentiles(image.numpy()))
        images.append(image)
    batch = torch.stack(images)[:, None].expand(-1, 3, -1, -1)
    return (batch - 0.5) / 0.25, torch.stack(targets)


def draw_texts(size: int, shares: torch.Tensor, seed: int, rare: bool = False) -> tuple[list[str], list[str]]:
    """One text per class, background and ``size`` absent structures; and one caption per slice."""
    generator = np.random.default_rng(seed)
    templates = ("{}", "{}", *anatomy.templates("CT"), *anatomy.templates("MR"))

    def worded(phrase: str) -> str:
        return str(generator.choice(templates)).format(phrase)

    names = [str(generator.choice(training_phrases(name, rare))) for name in CLASSES]
    phrases = [p for p in anatomy.background_phrases() if "air" not in p]  # air is a class of its own
    background = str(generator.choice(phrases))
    others = [s.name for s in anatomy.vocabulary().values() if s.name not in CLASSES and not _may_be_shown(s)]
    absent = [str(name) for name in generator.choice(others, size, replace=False)]
    texts = [worded(name) for name in names] + [worded(background)] + [worded(name) for name in absent]
    captions = []
    for share in shares.mean(1)[:, : len(CLASSES)]:
        present = [names[i] for i in torch.argsort(share, descending=True)[:4].tolist() if share[i] > 0]
        captions.append(worded(", the ".join(present) if present else background))
    return texts, captions


_SHOWN_WORDS = [
    "kidney",
    "lung",
    "adrenal",
    "parotid",
    "body",
    "skin",
    "abdom",
    "hippocamp",
    "vein",
    "tissue",
    "organ",
    "bowel",
    "colon",
    "duoden",
    "intestin",
    "vertebra",
    "rib",
    "costal",
    "stern",
    "sacr",
    "hip",
    "bone",
    "skull",
    "face",
    "disc",
    "muscle",
    "glut",
    "iliopsoas",
    "autochthon",
    "spin",
    "jaw",
    "artery",
    "heart",
    "cartilage",
]
"""Words in the names of structures that the training images show without labelling them as such."""


def _may_be_shown(structure: anatomy.Structure) -> bool:
    """Whether a structure may be in the images or consists of trained ones, so that its name is no true negative."""
    return bool(structure.members) or any(word in structure.name for word in _SHOWN_WORDS)


def new_model() -> torch.nn.Module:
    """The network with random weights, its token embedding taken from ``wordllama`` and fixed."""
    import wordllama

    open_clip = import_open_clip()
    cfg = CONFIG["model_cfg"]
    model = open_clip.CLIP(cfg["embed_dim"], dict(cfg["vision_cfg"]), dict(cfg["text_cfg"]))
    tokenizer = open_clip.tokenizer.SimpleTokenizer()
    words = [tokenizer.decode([i]).strip() or "." for i in range(tokenizer.vocab_size)]
    # Its wheel holds the tokenizer, but not where it looks first.
    embedder = wordllama.WordLlama.load(cache_dir=Path(wordllama.__file__).parent, disable_download=True)
    vectors = torch.from_numpy(np.asarray(embedder.embed(words), dtype=np.float32))
    vectors = functional.normalize(vectors - vectors.mean(0), dim=-1)
    _, _, basis = torch.linalg.svd(vectors[::7], full_matrices=False)
    table = vectors @ basis[:WIDTH].T
    table = table / table.std() * 0.5
    special = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(7)) * 0.5
    table[tokenizer.vocab_size - 2 :] = special  # start and end of text: no words
    with torch.no_grad():
        model.token_embedding.weight.copy_(table)
    model.token_embedding.weight.requires_grad_(False)
    return model


def class_weights(subjects: list[data.Subject], weights: torch.Tensor, seed: int) -> torch.Tensor:
    """One over the square root of each class's share, estimated on seeded batches; mean 1 over the patches."""
    shares = torch.cat([draw_batch(subjects, weights, 32, seed + k)[1].flatten(0, 1) for k in range(8)]).mean(0)
    raw = 1 / (shares + 1e-4).sqrt()
    raw *= torch.tensor([EMPHASIS.get(name, 1.0) for name in (*CLASSES, "")])
    return raw / (raw * shares).sum()


def started_from(folder: Path) -> Any:
    """The network with the weights of a folder that `save` wrote."""
    open_clip = import_open_clip()
    cfg = CONFIG["model_cfg"]
    model = open_clip.CLIP(cfg["embed_dim"], dict(cfg["vision_cfg"]), dict(cfg["text_cfg"]))
    model.load_state_dict(load_file(folder / "open_clip_model.safetensors"))
    model.token_embedding.weight.requires_grad_(False)
    return model.float()


def train(root: Path, work: Path, steps: int, batch: int, seed: int, rate: float, start: Path | None = None) -> Any:
    """Train, from random weights or those of a folder, or resume; returns the averaged model in evaluation mode."""
    subjects = data.abdomen_subjects(root, data.TRAIN)
    subjects += data.phantom_subjects()
    subjects += data.head_neck_subjects(root, 10, every_contour=True)
    subjects += data.hippocampus_subjects(root, 10)
    share = {"abdomen": 0.80, "phantom": 0.08, "head_neck": 0.09, "hippocampus": 0.03}
    count = {kind: sum(s.kind == kind for s in subjects) for kind in share}
    weights = torch.tensor([share[s.kind] / count[s.kind] for s in subjects])
    validation = data.abdomen_subjects(root, data.VALIDATION)
    check = draw_batch(validation, torch.ones(len(validation)), 48, seed + 99)
    balance = class_weights(subjects, weights, seed + 1234)

    torch.manual_seed(seed)
    model: Any = started_from(start) if start else new_model()
    tokenize = import_open_clip().tokenizer.SimpleTokenizer(context_length=32)
    average: Any = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(AVERAGED))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.03)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min(1.0, (s + 1) / 150) * (0.01 + 0.99 * (1 + math.cos(math.pi * min(1, s / steps))) / 2)
    )
    begin, checkpoint = 0, work / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        begin = state["step"]

    def losses(net: Any, images: torch.Tensor, shares: torch.Tensor, key: int, noise: float) -> torch.Tensor:
        texts, captions = draw_texts(16, shares, key, rare=start is not None)
        noisy = net.token_embedding.register_forward_hook(lambda _m, _i, out: out + noise * torch.randn_like(out))
        words = functional.normalize(net.encode_text(tokenize(texts + captions)), dim=-1)
        noisy.remove()
        with torch.autocast("cpu", torch.bfloat16):
            pooled, patches = dense_embeddings(net.visual, images)
        scale = net.logit_scale.exp().clamp(max=100)
        logits = scale * patches.float().flatten(1, 2) @ words[: len(texts)].T
        log_p = functional.log_softmax(logits, -1)[..., : shares.shape[-1]]
        dense = -(shares * balance * log_p).sum(-1).mean()
        match = scale * functional.normalize(pooled.float(), dim=-1) @ words[len(texts) :].T
        diagonal = torch.arange(len(images))
        paired = functional.cross_entropy(match, diagonal) + functional.cross_entropy(match.T, diagonal)
        return dense + 0.03 * paired

    clock, total = time.time(), 0.0
    for step in range(begin, steps):
        key = seed * 1_000_003 + step
        images, shares = draw_batch(subjects, weights, batch, key)
        torch.manual_seed(key)
        loss = losses(model.train(), images, shares, key, noise=0.15)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        average.update_parameters(model)
        total += float(loss.detach())
        if (step + 1) % 25 == 0:
            print(f"step {step + 1}/{steps} loss {total / 25:.4f} {time.time() - clock:.0f} s", flush=True)
            total = 0.0
        if (step + 1) % CHECKPOINT_STEPS == 0 or step + 1 == steps:
            parts = {"model": model, "average": average, "optimizer": optimizer, "schedule": schedule}
            state = {name: part.state_dict() for name, part in parts.items()} | {"step": step + 1}
            torch.save(state, checkpoint.with_suffix(".new"))
            checkpoint.with_suffix(".new").replace(checkpoint)
            with torch.inference_mode():
                value = float(losses(average.module.eval(), *check, 5, noise=0.0))
            print(f"step {step + 1} validation loss {value:.4f}", flush=True)
    return average.module.eval()


def save(model: Any, folder: Path) -> None:
    """Write an open_clip ``local-dir`` folder: half-precision safetensors and the configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {k: v.half().contiguous() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps(CONFIG, indent=2) + "\n", encoding="utf-8")
    (folder / "xaiclip.json").write_text(json.dumps(SETTINGS, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Command line of the training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument(
        "--folder", type=Path, default=resource_path("models", "anatomy-clip"), help="where to write it"
    )
    parser.add_argument("--steps", type=int, default=5500)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=Path, metavar="FOLDER", help="start from the weights in this folder")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 takes all")
    arguments = parser.parse_args()
    torch.set_flush_denormal(True)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    arguments.work.mkdir(parents=True, exist_ok=True)
    a = arguments
    model = train(a.data, a.work, a.steps, a.batch, a.seed, a.rate, a.start)
    save(model, arguments.folder)


if __name__ == "__main__":
    main()
