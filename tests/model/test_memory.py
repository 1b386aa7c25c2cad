"""The memory estimate against sums made by hand, and the memory that a machine has."""

from pathlib import Path
from types import SimpleNamespace

import keras
import pytest
import tensorflow as tf
from keras import layers, ops

from vidpipe.config import ClipSpec, ModelConfig
from vidpipe.model import memory
from vidpipe.model.fused import build_model
from vidpipe.model.memory import MemoryEstimate

MIB, GIB = 2**20, 2**30


def with_allowance(num_bytes: int) -> int:
    """Adds the allocator's allowance to the bytes of a few tensors."""
    return num_bytes + int(0.65 * num_bytes)


def tiny_model(num_frames: int, nested: bool = True) -> keras.Model:
    """Builds uint8 [B, T, 4, 4, 3] -> convolution, pooling and mean per frame -> mean per clip -> [B, 5]."""

    def network(images: keras.KerasTensor) -> keras.KerasTensor:
        maps = layers.Conv2D(2, 3, padding="same", activation="relu", name="conv")(images)
        return layers.GlobalAveragePooling2D()(layers.MaxPooling2D()(maps))

    if nested:
        images = keras.Input((4, 4, 3))
        network = keras.Model(images, network(images), name="backbone")
    frames = keras.Input((num_frames, 4, 4, 3), dtype="uint8")
    features = network(ops.cast(ops.reshape(frames, [-1, 4, 4, 3]), "float32"))
    clip = ops.mean(ops.reshape(features, [-1, num_frames, 2]), axis=1)
    return keras.Model(frames, layers.Dense(5, name="logits")(clip))


# The tensors of 2 clips of 3 frames, in bytes: cast 6*4*4*3*4, convolution 6*4*4*2*4, pooling 6*2*2*2*4.
CAST, CONV, POOL = 1152, 768, 192
CONV_WEIGHTS, ALL_WEIGHTS = 4 * (3 * 3 * 3 * 2 + 2), 4 * (3 * 3 * 3 * 2 + 2 + 2 * 5 + 5)


@pytest.mark.parametrize("nested", [True, False])
def test_a_call_takes_fewer_than_2_to_the_31_elements(nested: bool) -> None:
    """The frames of a clip have the most: 3 x 4 x 4 x 3 of each of T frames."""
    assert memory.clips_per_call(tiny_model(3, nested)) == (2**31 - 1) // (3 * 4 * 4 * 3)
    assert memory.clips_per_call(tiny_model(2**31 // 48 + 1, nested)) == 0


def test_block_1_of_vgg16_takes_668_frames_of_224_pixels() -> None:
    """The shallow VGG16 has the same first block."""
    for num_frames, expected in ((668, 1), (669, 0), (20, 33)):
        spec = ClipSpec(num_frames=num_frames, height=224, width=224)
        config = ModelConfig(backbone_weights="none", ensemble_size=1)
        model = build_model(config, spec=spec, num_classes=2, stored_frames=num_frames)
        assert memory.clips_per_call(model.fused) == expected
        assert memory.clips_per_call(model.trained) > 1000


@pytest.mark.parametrize("nested", [True, False])
def test_a_trained_model_is_exact_to_the_byte(nested: bool) -> None:
    found = memory.estimate(tiny_model(3, nested), num_clips=2, slots_per_weight=2)
    # The peak is reached when the backward pass is at the pooling: all stored tensors and two gradients.
    activations = with_allowance(CAST + CONV + POOL + CONV + POOL)
    assert found == MemoryEstimate(
        weights=ALL_WEIGHTS,
        gradients=ALL_WEIGHTS,
        slots=2 * ALL_WEIGHTS,
        activations=activations,
        input=2 * 3 * 4 * 4 * 3,
    )
    assert found.total == 4 * ALL_WEIGHTS + activations + 288


@pytest.mark.parametrize("nested", [True, False])
def test_a_frozen_backbone_stores_no_tensors(nested: bool) -> None:
    model = tiny_model(3, nested)
    model.get_layer("backbone" if nested else "conv").trainable = False
    found = memory.estimate(model, num_clips=2, slots_per_weight=1)
    trained = ALL_WEIGHTS - CONV_WEIGHTS
    # The convolution's output and input; the latter is freed when the pooling writes.
    assert found == MemoryEstimate(
        weights=ALL_WEIGHTS,
        gradients=trained,
        slots=trained,
        activations=with_allowance(CAST + CONV),
        input=288,
    )


def test_a_tensor_is_alive_until_its_last_reader() -> None:
    images = keras.Input((8,))
    first = ops.tanh(images)
    model = keras.Model(images, ops.tanh(ops.tanh(first)) + first)
    # Three float32 [1, 8]: the first, the last but one and the sum, or the first and two in between.
    assert memory.estimate(model, num_clips=1, slots_per_weight=0).activations == with_allowance(3 * 8 * 4)


def test_the_axis_of_pixels_is_not_taken_for_that_of_frames() -> None:
    """[N, 4, 4, 3] looks like clips of 4 frames."""
    sizes = [
        memory.estimate(tiny_model(frames), num_clips=1, slots_per_weight=0).activations for frames in (4, 8)
    ]
    assert sizes == [
        with_allowance(4 * (CAST + 2 * CONV + 2 * POOL) // 6),
        with_allowance(8 * (CAST + 2 * CONV + 2 * POOL) // 6),
    ]


def test_half_precision_halves_the_activations() -> None:
    images = keras.Input((4, 4, 3))

    def estimate(policy: str) -> MemoryEstimate:
        conv = layers.Conv2D(2, 3, padding="same", dtype=policy)
        model = keras.Model(images, layers.Activation("relu", dtype=policy)(conv(images)))
        return memory.estimate(model, num_clips=6, slots_per_weight=2)

    single, half = estimate("float32"), estimate("mixed_bfloat16")
    assert single.activations == with_allowance(4 * CONV)
    assert half.activations == with_allowance(4 * CONV // 2)
    assert (half.weights, half.slots) == (single.weights, single.slots) == (CONV_WEIGHTS, 2 * CONV_WEIGHTS)


def test_cached_features_are_an_input() -> None:
    """A model of trained blocks that starts at feature maps, with a layer that another model uses too."""
    conv = layers.Conv2D(2, 3, padding="same", activation="relu")
    conv(keras.Input((4, 4, 3)))
    features = keras.Input((3, 4, 4, 3), name="features")
    mask = keras.Input((3,), dtype="bool", name="mask")
    maps = ops.reshape(conv(ops.reshape(features, [-1, 4, 4, 3])), [-1, 3, 4, 4, 2])
    real = ops.sum(maps, axis=[2, 3, 4]) * ops.cast(mask, "float32")
    model = keras.Model({"features": features, "mask": mask}, real)
    found = memory.estimate(model, num_clips=2, slots_per_weight=2)
    assert found.input == CAST + 2 * 3
    assert found.activations == with_allowance(2 * CONV)


def test_a_recurrent_layer_stores_its_time_steps() -> None:
    features = keras.Input((10, 4))
    model = keras.Model(features, layers.LSTM(6)(features))
    # 14 times [2, 10, 6], the output [2, 6] and its gradient, float32.
    found = memory.estimate(model, num_clips=2, slots_per_weight=2)
    assert found.activations == with_allowance(4 * (14 * 2 * 10 * 6 + 2 * 2 * 6))


def test_the_fused_model_frozen_and_trained() -> None:
    """With the shallow backbone; `test_memory_of_vgg16` does the same for the real one."""
    spec = ClipSpec(num_frames=4, height=64, width=64)
    found = {
        fine_tune: memory.estimate(
            build_model(
                ModelConfig(backbone_weights="none", fine_tune=fine_tune),
                spec=spec,
                num_classes=5,
                stored_frames=4,
            ).fused,
            num_clips=2,
            slots_per_weight=2,
        )
        for fine_tune in ("none", "block5", "all")
    }
    floats_per_pixel = {
        # The output of the first convolution and of its pooling, of 8 frames; masks add little.
        "none": 64 + 16,
        "block5": 64 + 16,
        # All trained: when the backward pass is at the first pooling, the images, the outputs of the first
        # convolution and pooling, and the gradients of these two; further up, as much again.
        "all": 3 + (64 + 16) + (64 + 16),
    }
    for fine_tune, floats in floats_per_pixel.items():
        expected = with_allowance(8 * 64 * 64 * floats * 4)
        assert found[fine_tune].activations == pytest.approx(expected, rel=1e-4)
    assert found["none"].weights == found["all"].weights
    assert found["all"].slots == 2 * found["all"].gradients > found["block5"].slots > found["none"].slots


@pytest.mark.parametrize("num_clips, allowance", [(1, 0.65 * 160), (3, 256), (32, 512)])
def test_the_allowance_shrinks_with_the_size(num_clips: int, allowance: float) -> None:
    """One tensor of 160 MiB per clip."""
    images = keras.Input((40 * MIB,))
    model = keras.Model(images, ops.tanh(images))
    found = memory.estimate(model, num_clips=num_clips, slots_per_weight=0)
    assert found.activations == num_clips * 160 * MIB + int(allowance * MIB)


@pytest.mark.parametrize(
    ("sizes", "unit", "text"),
    [
        (
            (0.06, 0.05, 0.1, 6.9, 0.3),
            GIB,
            "7.4 GiB (weights 0.1, gradients 0.0, slots 0.1, activations 6.9, input 0.3)",
        ),
        (
            (1, 0, 2, 2.5, 0),
            MIB,
            "5.5 MiB (weights 1.0, gradients 0.0, slots 2.0, activations 2.5, input 0.0)",
        ),
    ],
    ids=["GiB", "MiB"],
)
def test_an_estimate_is_printed_with_its_parts(sizes: tuple[float, ...], unit: int, text: str) -> None:
    names = ("weights", "gradients", "slots", "activations", "input")
    parts = {name: int(size * unit) for name, size in zip(names, sizes, strict=True)}
    assert str(MemoryEstimate(**parts)) == text


def per_clip(num_clips: int) -> MemoryEstimate:
    return MemoryEstimate(weights=100, gradients=0, slots=0, activations=10 * num_clips, input=0)


@pytest.mark.parametrize(
    "batch_size, available, expected",
    [(12, 220, 1), (12, 219, 2), (12, 159, 3), (12, 139, 4), (12, 110, 12), (12, 109, None), (7, 169, 7)],
)
def test_the_fewest_microbatches(batch_size: int, available: int, expected: int | None) -> None:
    found = memory.microbatches_that_fit(per_clip, batch_size=batch_size, available=available)
    assert found == expected


@pytest.mark.parametrize(
    "available, at_most, expected",
    [(10_000, 64, 64), (10_000, 63, 32), (180, 64, 8), (179, 64, 4), (109, 64, None)],
)
def test_the_largest_batch(available: int, at_most: int, expected: int | None) -> None:
    assert memory.largest_batch(per_clip, available=available, at_most=at_most) == expected


@pytest.mark.parametrize(
    "files, expected",
    [
        ({}, 1744),
        ({"memory.max": "max", "memory.current": 5 * MIB, "memory.stat": "inactive_file 0"}, 1744),
        (
            {
                "memory.max": 900 * MIB,
                "memory.current": 500 * MIB,
                "memory.stat": f"anon 1\ninactive_file {90 * MIB}",
            },
            234,
        ),
        ({"memory.max": 500 * MIB, "memory.current": 490 * MIB, "memory.stat": "inactive_file 0"}, 0),
        (
            {
                "memory/memory.limit_in_bytes": 900 * MIB,
                "memory/memory.usage_in_bytes": 500 * MIB,
                "memory/memory.stat": f"inactive_file 7\ntotal_inactive_file {90 * MIB}",
            },
            234,
        ),
    ],
    ids=["machine", "no_limit", "cgroup2", "nothing_left", "cgroup1"],
)
def test_a_cpu_has_its_free_memory_minus_a_reserve(tmp_path: Path, files: dict, expected: int) -> None:
    """In MiB; 2000 are free on the machine."""
    (tmp_path / "meminfo").write_text(f"MemTotal: 9 kB\nMemAvailable:    {2000 * 1024} kB\n")
    (tmp_path / "memory").mkdir()
    for name, content in files.items():
        (tmp_path / name).write_text(f"{content}\n")
    assert memory._host_bytes(tmp_path / "meminfo", tmp_path) == expected * MIB


def test_the_memory_of_an_unknown_system_is_none(tmp_path: Path) -> None:
    assert memory._host_bytes(tmp_path / "meminfo", tmp_path) is None


def test_a_gpu_has_its_allocators_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = [("CPU", 268435456), ("GPU", 8 * GIB), ("GPU", 6 * GIB)]
    listed = [SimpleNamespace(device_type=kind, memory_limit_bytes=limit) for kind, limit in devices]
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: [kind])
    monkeypatch.setattr(tf.compat.v1.Session, "list_devices", lambda session: listed)
    assert memory.available_bytes() == 6 * GIB
