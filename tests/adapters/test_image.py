"""ImageAdapter: every form of a picture becomes the model's pixels, and segments become features."""

from __future__ import annotations

import pickle
from functools import partial

import captum.attr
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from skimage.segmentation import slic
from timm.data import create_transform, resolve_data_config
from torch import nn
from torchvision.transforms._presets import ImageClassification
from transformers import CLIPImageProcessor, ConvNextImageProcessor, DeiTImageProcessor, ViTConfig, ViTImageProcessor
from transformers import ViTForImageClassification as HuggingFaceViT

from captum_attn_lime import AttentionAttribution
from captum_attn_lime.adapters import ImageAdapter
from captum_attn_lime.errors import ForwardError, InputError

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


class Patches(nn.Module):
    """Patches of 4 x 4, their mean, three classes."""

    def __init__(self, channels: int = 3, classes: int = 3) -> None:
        super().__init__()
        self.cut = nn.Conv2d(channels, 5, 4, 4)
        self.head = nn.Linear(5, classes)

    def forward(self, x):
        return self.head(self.cut(x).mean(dim=(2, 3)))


def picture(height: int = 8, width: int = 12) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    return (np.stack([np.sin(5 * x), np.cos(4 * y), np.sin(3 * x + 2 * y)], axis=2) * 120 + 125).astype(np.uint8)


def adapter(**options) -> ImageAdapter:
    return ImageAdapter(Patches(), **{"mean": MEAN, "std": STD, **options})


def tiny_vit(**options) -> nn.Module:
    config = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    return HuggingFaceViT(ViTConfig(image_size=32, patch_size=8, num_labels=3, **config, **options)).eval()


def by_hand(image: np.ndarray) -> torch.Tensor:
    """The normalisation in float64, pixel by pixel."""
    return torch.from_numpy(((image / 255.0 - MEAN) / STD).transpose(2, 0, 1)[None])


def test_all_forms_of_a_picture_give_the_same_pixels(tmp_path):
    image = picture()
    path = tmp_path / "picture.png"
    Image.fromarray(image).save(path)
    forms = {
        "uint8": image,
        "int64": image.astype(np.int64),
        "float64": image / 255,
        "float32": (image / 255).astype(np.float32),
        "read-only": np.broadcast_to(image, image.shape),
        "opaque": np.dstack([image, np.full(image.shape[:2], 255, np.uint8)]),
        "PIL": Image.fromarray(image),
        "PIL with alpha": Image.fromarray(image).convert("RGBA"),
        "path": path,
        "string": str(path),
        "uint8 tensor": torch.from_numpy(image).permute(2, 0, 1),
        "float tensor": torch.from_numpy(image).permute(2, 0, 1) / 255,
        "list": [image],
        "batch": image[None],
        "tensor batch": torch.from_numpy(image).permute(2, 0, 1)[None],
    }
    a = adapter()
    for name, form in forms.items():
        x = a.encode(form)
        np.testing.assert_allclose(x.inputs.double(), by_hand(image), atol=3e-6, rtol=0, err_msg=name)
        shown = x.images[0] / (255 if x.images[0].dtype == np.uint8 else 1)
        np.testing.assert_allclose(shown, image / 255, atol=1e-6, err_msg=name)


def test_grey_pictures_and_models_of_grey_pictures():
    grey = picture()[:, :, 0]
    three = adapter()
    expected = by_hand(np.repeat(grey[:, :, None], 3, axis=2))
    for form in (grey, grey[:, :, None], Image.fromarray(grey), torch.from_numpy(grey), torch.from_numpy(grey)[None]):
        np.testing.assert_allclose(three.encode(form).inputs.double(), expected, atol=3e-6)
    one = ImageAdapter(Patches(1), mean=(0.1,), std=(0.3,))
    x = one.encode(grey)
    assert x.inputs.shape == (1, 1, 8, 12)
    assert x.images[0].shape == (8, 12, 3)
    np.testing.assert_allclose(x.inputs[0, 0].double(), (grey / 255.0 - 0.1) / 0.3, atol=3e-6)
    # Colours become grey as PIL makes them so, up to PIL's rounding.
    pil = np.asarray(Image.fromarray(picture()).convert("L")) / 255.0
    np.testing.assert_allclose(one.encode(picture()).inputs[0, 0].double() * 0.3 + 0.1, pil, atol=1 / 255)


@pytest.mark.parametrize("mode", ["P", "LA", "CMYK", "HSV", "1", "L"])
def test_every_mode_of_pil_becomes_its_colours(mode):
    image = Image.fromarray(picture()).convert(mode)
    expected = by_hand(np.asarray(image.convert("RGB")))
    np.testing.assert_allclose(adapter().encode(image).inputs.double(), expected, atol=3e-6)


def test_pictures_lie_as_their_exif_says(tmp_path):
    image = Image.fromarray(picture(8, 12))
    exif = image.getexif()
    exif[0x0112] = 6  # lies on its left side
    path = tmp_path / "side.png"
    image.save(path, exif=exif)
    assert adapter().encode(path).images[0].shape == (12, 8, 3)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (np.zeros((3, 8, 8), np.uint8), r"\(3, 8, 8\) is not a picture.*Tensors have channels first"),
        (torch.zeros(8, 8, 3), r"\(8, 8, 3\) is not a picture; tensors are \(C, H, W\)"),
        (np.full((4, 4, 3), 200.0), "from 0 to 1, but these from 200 to 200; divide by 255"),
        (np.full((4, 4, 3), np.nan), "from 0 to 1"),
        (torch.full((3, 4, 4), -2.0), "normalized=True"),
        (np.full((4, 4, 3), 300), "from 0 to 255, but these from 300 to 300"),
        (np.zeros((4, 4, 4), np.uint8), "transparent"),
        (Image.fromarray(np.zeros((4, 4, 4), np.uint8), "RGBA"), "transparent"),
        (Image.fromarray(np.zeros((4, 4), np.int32), "I"), "mode 'I'"),
        ("no such file.png", "cannot read a picture from 'no such file.png'"),
        (np.zeros((4, 4, 3), object), "dtype is object"),
        ([], "list of pictures is empty"),
        (np.zeros((0, 4, 4, 3)), "at least one"),
        (None, "but is NoneType"),
        (b"png", "but is bytes"),
        (np.zeros((2, 30, 30), np.uint8), r"arrays are \(H, W\), \(H, W, 1\) or \(H, W, 3\)"),
        (torch.full((3, 4, 4), 200.0), "divide by 255"),
        ([picture(8, 8), picture(8, 12)], "sizes 8 x 8, 8 x 12"),
    ],
)
@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated")
def test_what_is_no_picture_is_refused(raw, message):
    with pytest.raises(InputError, match=message):
        adapter().encode(raw)


def test_probabilities_for_lime():
    a = adapter(size=(8, 12), batch_size=2)
    images = np.stack([picture(), np.roll(picture(), 3, axis=1), picture()[::-1]])
    x = torch.cat([by_hand(image) for image in images])
    expected = a.model.double()(x).softmax(dim=1).detach().numpy()
    a.model.float()
    for form in (images, list(images), images / 255, torch.from_numpy(images).permute(0, 3, 1, 2)):
        found = a.predict_proba(form)
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(a.predict_proba(picture()), expected[:1], atol=1e-6)
    # Pictures of several sizes and kinds of values, one after the other.
    mixed = [picture(16, 24), images[0] / 255, images[1]]
    np.testing.assert_allclose(a.predict_proba(mixed)[1:], expected[:2], atol=1e-6)


def test_training_flags_and_gradients_are_left_alone():
    model = nn.Sequential(Patches(), nn.Dropout(0.5))
    a = ImageAdapter(model.train(), mean=MEAN, std=STD)
    np.testing.assert_array_equal(a.predict_proba(picture()), a.predict_proba(picture()))
    assert all(m.training for m in model.modules())
    x = a.encode(picture())
    assert not x.inputs.requires_grad
    a.eval()
    assert captum.attr.Saliency(a).attribute(x.inputs.requires_grad_(), target=1).abs().sum() > 0


@pytest.mark.parametrize("classes", [1, 3])
def test_single_logit_and_multi_label(classes):
    model = Patches(classes=classes)
    a = ImageAdapter(model, mean=MEAN, std=STD)
    p = torch.tensor(a.logits(picture()))
    if classes == 1:
        np.testing.assert_allclose(a.predict_proba(picture())[:, 1], p.sigmoid()[:, 0])
        return
    vit = ImageAdapter(tiny_vit(problem_type="multi_label_classification"), ViTImageProcessor(size=32))
    found = vit.predict_proba(picture(32, 32))
    np.testing.assert_allclose(found, torch.tensor(vit.logits(picture(32, 32))).sigmoid().numpy())
    assert vit.class_names == ("LABEL_0", "LABEL_1", "LABEL_2")


def test_timm_settings_are_those_of_its_own_transform():
    model = timm.create_model("vit_tiny_patch16_224", embed_dim=16, depth=1, num_heads=2, num_classes=3).eval()
    transform = create_transform(**resolve_data_config({}, model=model))
    for a in (ImageAdapter(model), ImageAdapter(nn.Identity(), resolve_data_config({}, model=model))):
        for size in ((300, 260), (240, 500), (100, 90)):
            image = picture(*size)
            expected = transform(Image.fromarray(image))[None]
            assert torch.equal(a.encode(image, features=np.zeros((224, 224), int)).inputs, expected)
            # Floats are resampled without rounding in between.
            rounding = 2.01 / 255 / 0.5  # once in each direction
            torch.testing.assert_close(
                a.encode(image / 255, features=np.zeros((224, 224), int)).inputs, expected, atol=rounding, rtol=0
            )
    assert ImageAdapter(model).patch_size == (16, 16)


def test_timm_model_of_another_size_than_its_weights():
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=16, depth=1, num_heads=2)
    a = ImageAdapter(model)
    assert a.preprocessing.size == (32, 32)
    assert a.predict_proba(picture(64, 50)).shape == (1, 1000)


@pytest.mark.parametrize(
    "make",
    [
        partial(ViTImageProcessor, size={"height": 32, "width": 24}),
        partial(CLIPImageProcessor, size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        partial(DeiTImageProcessor, size={"height": 40, "width": 40}, crop_size={"height": 32, "width": 32}),
        partial(ConvNextImageProcessor, size={"shortest_edge": 64}),
        partial(ConvNextImageProcessor, size={"shortest_edge": 384}),
        partial(ViTImageProcessor, do_resize=False),
        partial(ViTImageProcessor, size=32, do_normalize=False),
        partial(ViTImageProcessor, size=32, rescale_factor=1 / 127.5),
    ],
)
def test_huggingface_settings_are_those_of_its_own_processor(make):
    processor = make()
    a = ImageAdapter(Patches(), processor)
    image = picture(90, 130)
    expected = torch.as_tensor(processor(images=image, return_tensors="np")["pixel_values"])
    found = a.encode(image).inputs
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) < 0.02 / min(a.preprocessing.std)


def test_torchvision_settings_are_those_of_its_own_transforms():
    transforms = ImageClassification(crop_size=32, resize_size=40)
    image = picture(90, 131)
    found = ImageAdapter(Patches(), transforms).encode(image).inputs
    torch.testing.assert_close(found[0], transforms(Image.fromarray(image)), atol=1e-6, rtol=0)


def test_settings_that_are_said_go_before_those_that_are_read():
    a = ImageAdapter(Patches(), ViTImageProcessor(size=32), mean=0.1, size=(16, 8), interpolation="nearest")
    assert a.preprocessing.mean == (0.1,) * 3
    assert a.preprocessing.std == (0.5,) * 3
    assert a.encode(picture(50, 50)).inputs.shape == (1, 3, 16, 8)


class Flipping(ViTImageProcessor):
    """Does what none of its settings says."""

    def __call__(self, images, **options):
        return super().__call__(np.asarray(images)[::-1].copy(), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "preprocessing of Patches is unknown.*ImageNet's are"),
        ({"mean": 0.5}, "is unknown"),
        ({"mean": (0.5, 0.5), "std": (1, 1)}, "one number per channel"),
        ({"mean": 0.5, "std": 0}, "above 0"),
        ({"mean": "grey", "std": 1}, "mean must be one number per channel, but is 'grey'"),
        ({"mean": 0.5, "std": 1, "size": (1, 2, 3)}, "size must be"),
        ({"mean": 0.5, "std": 1, "size": 8, "resize_to": 7}, r"resize_to \(7, 7\) must be at least size"),
        ({"mean": 0.5, "std": 1, "size": 8, "fit": "pad"}, "fit must be"),
        ({"mean": 0.5, "std": 1, "interpolation": "cubic"}, "interpolation must be one of"),
        ({"mean": 0.5, "std": 1, "batch_size": 0}, "batch_size"),
        ({"processor": object()}, "processor is object"),
        ({"processor": {"input_size": (3, 8, 8)}}, "lacks mean and std"),
        ({"processor": {"mean": (0,) * 3, "std": (1,) * 3, "crop_mode": "border"}}, "crop_mode 'border'"),
        ({"processor": Flipping(size=32)}, "does more than resize"),
    ],
)
def test_settings_that_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        ImageAdapter(Patches(), **options)


def test_patches_are_the_models_own():
    x = adapter().encode(picture(8, 13))  # the last column of pixels is in no patch
    expected = np.array([[0, 1, 2], [3, 4, 5]]).repeat(4, axis=0).repeat(4, axis=1)
    np.testing.assert_array_equal(x.segments[0, :, :12], expected)
    assert (x.segments[0, :, 12] == 6).all()
    assert x.feature_names[0] == ("patch 0,0", "patch 0,1", "patch 0,2", "patch 1,0", "patch 1,1", "patch 1,2")
    assert x.feature_mask.shape == x.inputs.shape
    # What is in no patch cannot be removed.
    assert torch.equal(x.baselines[..., 12], x.inputs[..., 12])
    assert not torch.equal(x.baselines[..., :12], x.inputs[..., :12])
    other = adapter(patch_size=(2, 3)).encode(picture())
    assert len(other.feature_names[0]) == 16
    assert adapter(patch_size=4).patch_size == (4, 4)


def test_models_without_patches_ask():
    resnet = nn.Sequential(nn.Conv2d(3, 4, 7, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    a = ImageAdapter(resnet, mean=MEAN, std=STD)
    with pytest.raises(InputError, match="does not cut pictures into patches; pass patch_size="):
        a.encode(picture())
    assert len(a.encode(picture(), features="slic").feature_names[0]) > 1


@pytest.mark.parametrize("name", ["slic", "quickshift", "felzenszwalb", partial(slic, n_segments=6)])
def test_segments_count_from_zero(name):
    x = adapter().encode([picture(24, 20), picture(24, 20)[::-1]], features=name)
    for labels, names in zip(x.segments, x.feature_names, strict=True):
        assert sorted(np.unique(labels)) == list(range(len(names)))
    assert x.segments.shape == (2, 24, 20)


def test_segments_of_ones_own():
    labels = np.arange(96).reshape(8, 12) // 30 * 10 - 5
    a = adapter()
    x = a.encode(picture(), features=labels)
    np.testing.assert_array_equal(x.segments[0], (labels + 5) // 10)
    two = a.encode([picture()] * 2, features=np.stack([labels, labels * 0]))
    assert [len(names) for names in two.feature_names] == [4, 1]
    assert torch.equal(a.encode(picture(), features=torch.from_numpy(labels)).feature_mask, x.feature_mask)
    for wrong in (labels[:4], labels / 2, "voronoi", np.stack([labels] * 3)):
        with pytest.raises(InputError, match=r"features (must be|is)|pass one row for each"):
            a.encode(picture(), features=wrong)


def test_the_seed_of_the_segmentation_is_used():
    flat = np.zeros((8, 450, 3), np.uint8)  # nothing but ties, which quickshift breaks by chance
    a = adapter()
    found = [a.encode(flat, features="quickshift", seed=s).segments for s in (1, 1, 2)]
    np.testing.assert_array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])


def test_baselines_are_what_they_are_called():
    image = picture()
    labels = np.arange(96).reshape(8, 12) // 48
    a = adapter()

    def shown(baselines) -> np.ndarray:
        base = a.encode(image, features=labels, baselines=baselines).baselines.double()
        return ((base[0].permute(1, 2, 0).numpy() * STD + MEAN) * 255).round(3)

    # Whole numbers are cut off, as lime cuts them off.
    per_segment = np.stack([np.trunc(image[labels == k].mean(axis=0)) for k in (0, 1)])
    np.testing.assert_allclose(shown("segment"), per_segment[labels], atol=0.01)
    np.testing.assert_allclose(shown("mean")[3, 3], np.trunc(image.mean(axis=(0, 1))), atol=0.01)
    assert np.abs(shown("black")).max() < 0.01
    blurred = shown("blur")
    assert np.abs(np.diff(blurred, axis=0)).max() < np.abs(np.diff(image.astype(float), axis=0)).max()
    assert abs(blurred.mean() - image.mean()) < 3
    np.testing.assert_allclose(shown((10, 20, 30)), np.broadcast_to([10, 20, 30], image.shape), atol=0.01)
    np.testing.assert_allclose(shown(image[::-1]), image[::-1], atol=0.01)
    for wrong in ("noise", 0.5, 300, (1, 2), np.nan, None):
        with pytest.raises(InputError, match="baselines"):
            shown(wrong)
    with pytest.raises(InputError, match="numbers from 0 to 1"):
        a.encode(image / 255, features=labels, baselines=255)


def test_normalized_pixels_are_taken_as_they_are():
    a = adapter()
    plain = a.encode(picture(8, 13))
    x = a.encode(plain.inputs[0], normalized=True)
    assert torch.equal(x.inputs, plain.inputs)
    assert torch.equal(x.feature_mask, plain.feature_mask)
    np.testing.assert_allclose(x.images[0], plain.images[0] / 255, atol=1e-6)
    torch.testing.assert_close(x.baselines, plain.baselines, atol=1.01 / 255 / min(STD), rtol=0)
    assert torch.equal(x.baselines[..., 12], x.inputs[..., 12])
    for wrong in (plain.images[0], torch.zeros(1, 8, 8), torch.zeros(3, 8, 8, dtype=torch.uint8)):
        with pytest.raises(InputError, match="normalized=True needs"):
            a.encode(wrong, normalized=True)


def test_half_precision_and_errors_of_the_call():
    a = ImageAdapter(Patches().double(), mean=MEAN, std=STD)
    x = a.encode(picture())
    assert x.inputs.dtype == torch.float64
    assert a(x.inputs).dtype == torch.float64
    with pytest.raises(InputError, match=r"takes one tensor \(n, C, H, W\)"):
        a(x.inputs[0])
    with pytest.raises(InputError, match="class_names"):
        ImageAdapter(Patches(), mean=MEAN, std=STD, class_names=["a", "b"]).predict_proba(picture())
    with pytest.raises(ForwardError):
        ImageAdapter(nn.Conv2d(3, 2, 4, 4), mean=MEAN, std=STD).predict_proba(picture())


def test_adapters_and_encodings_can_be_pickled():
    a = ImageAdapter(tiny_vit(), ViTImageProcessor(size=32))
    x = a.encode(picture(40, 40))
    b, y = pickle.loads(pickle.dumps((a, x)))
    np.testing.assert_array_equal(b.predict_proba(picture(40, 40)), a.predict_proba(picture(40, 40)))
    assert torch.equal(y.feature_mask, x.feature_mask)
    assert y.feature_names == x.feature_names


def test_rollout_through_the_adapter_is_per_pixel():
    model = tiny_vit()
    a = ImageAdapter(model, ViTImageProcessor(size=32))
    x = a.encode(picture(32, 32))
    found = AttentionAttribution(a, method="rollout").attribute(x.inputs)
    model.set_attn_implementation("eager")
    maps = model(x.inputs, output_attentions=True).attentions
    product = torch.eye(17, dtype=torch.float64)
    for attention in maps:
        product = (0.5 * attention[0].double().mean(dim=0) + 0.5 * torch.eye(17)) @ product
    expected = product[0, 1:].reshape(4, 4).repeat_interleave(8, 0).repeat_interleave(8, 1)
    torch.testing.assert_close(found[0].double(), expected.expand(3, -1, -1), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), r"divide both by 255: mean=\(0.485, 0.456, 0.406\), std="),
        ((0.485, 0.456, 0.406), (58.395, 57.12, 57.375), "give both for values from 0 to 1"),
        ((123.675, 116.28, 103.53), (0.229, 0.224, 0.225), "divide both"),
        ((103.939, 116.779, 123.68), (1, 1, 1), r"divide both.*BGR.*flip\(1\)"),
        ((0.406, 0.456, 0.485), (0.225, 0.224, 0.229), "in BGR order"),
        (127.5, 127.5, "divide both"),
        ((33.3,), (78.6,), "divide both"),
        (0.0, 255.0, "give both"),
        (-1.0, 0.5, "give both"),
    ],
)
def test_means_and_deviations_in_other_units_are_refused(mean, std, message):
    with pytest.raises(InputError, match=message):
        ImageAdapter(Patches(len(mean) if isinstance(mean, tuple) else 3), mean=mean, std=std)
    with pytest.raises(InputError, match=message):
        ImageAdapter(Patches(), {"mean": mean, "std": std, "input_size": (3, 8, 12)})


def test_values_from_0_to_255_are_understood_where_they_are_said_rightly():
    model = nn.Flatten()
    plain = ImageAdapter(model, mean=0, std=1 / 255)
    np.testing.assert_allclose(plain.logits(picture())[0], picture().transpose(2, 0, 1).ravel(), atol=1e-3)
    options = {"do_rescale": False, "image_mean": [123.675, 116.28, 103.53], "image_std": [58.395, 57.12, 57.375]}
    found = ImageAdapter(model, ViTImageProcessor(do_resize=False, **options)).logits(picture())[0]
    by_mean = (picture() - np.array(options["image_mean"])) / options["image_std"]
    np.testing.assert_allclose(found, by_mean.transpose(2, 0, 1).ravel(), atol=1e-4)


def test_an_output_that_is_no_number():
    class Log(nn.Module):
        def forward(self, x):
            return (x.mean(dim=(2, 3)) - 0.5).log()

    black, white = (np.full((8, 12, 3), value, dtype=np.uint8) for value in (0, 255))
    with pytest.raises(ForwardError, match="Log gave NaN for picture 1"):
        ImageAdapter(Log(), mean=0, std=1).logits([white, black])
