"""Indices by hand, and what holds for every sampler whatever the counts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidpipe.sampling import SAMPLERS, depends_on_length, sample_indices


@pytest.mark.parametrize(
    ("sampling", "video_num_frames", "num_frames", "frame_stride", "expected"),
    [
        pytest.param("uniform", 8, 4, None, [1, 3, 5, 7], id="uniform longer"),
        pytest.param("uniform", 4, 4, None, [0, 1, 2, 3], id="uniform equal"),
        pytest.param("uniform", 3, 4, None, [0, 1, 2], id="uniform shorter"),
        pytest.param("uniform", 1, 3, None, [0], id="uniform single frame"),
        pytest.param("uniform", 10, 4, None, [1, 3, 6, 8], id="uniform uneven"),
        pytest.param("interval", 9, 4, None, [0, 2, 4, 6], id="interval spread"),
        pytest.param("interval", 3, 4, None, [0, 1, 2], id="interval shorter"),
        pytest.param("interval", 9, 4, 3, [0, 3, 6], id="interval cut off by the end"),
        pytest.param("interval", 100, 4, 3, [0, 3, 6, 9], id="interval stride given"),
        pytest.param("head", 8, 4, None, [0, 1, 2, 3], id="head longer"),
        pytest.param("head", 2, 4, None, [0, 1], id="head shorter"),
    ],
)
def test_indices(
    sampling: str, video_num_frames: int, num_frames: int, frame_stride: int | None, expected: list[int]
) -> None:
    indices = sample_indices(sampling, video_num_frames, num_frames, frame_stride)
    assert indices.tolist() == expected
    assert indices.dtype == np.int64


@given(st.sampled_from(sorted(SAMPLERS)), st.integers(1, 10**7), st.integers(1, 300))
def test_every_sampler_gives_as_many_distinct_frames_as_there_are(
    sampling: str, video_num_frames: int, num_frames: int
) -> None:
    indices = sample_indices(sampling, video_num_frames, num_frames)
    assert len(indices) == min(num_frames, video_num_frames)
    assert (np.diff(indices) > 0).all()
    assert indices[0] >= 0
    assert indices[-1] < video_num_frames


@given(
    st.sampled_from([("head", None), ("interval", 3)]),
    st.integers(1, 200),
    st.integers(1, 50),
    st.integers(1, 200),
)
def test_what_does_not_depend_on_length_is_only_cut_off_by_it(
    rule: tuple[str, int | None], shorter: int, num_frames: int, more: int
) -> None:
    sampling, frame_stride = rule
    assert not depends_on_length(sampling, frame_stride)
    cut = sample_indices(sampling, shorter, num_frames, frame_stride)
    whole = sample_indices(sampling, shorter + more, num_frames, frame_stride)
    assert cut.tolist() == [index for index in whole.tolist() if index < shorter]


@pytest.mark.parametrize("sampling", sorted(SAMPLERS))
def test_zero_counts_are_refused(sampling: str) -> None:
    with pytest.raises(ValueError, match="video_num_frames=0"):
        sample_indices(sampling, 0, 4)
    with pytest.raises(ValueError, match="num_frames=0"):
        sample_indices(sampling, 4, 0)


def test_a_stride_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="frame_stride must be at least 1"):
        sample_indices("interval", 4, 4, 0)
