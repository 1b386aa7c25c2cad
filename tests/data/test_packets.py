"""What packets tell: numbers by hand."""

import numpy as np
import pytest

from vidpipe.data.packets import Damage, Loss, Packets, is_b_vop, loss_by_index, loss_by_time, order_of_vops

NAN = float("nan")


def _packets(pts: list[float], keyframes: tuple[int, ...] = (0,), **columns: object) -> Packets:
    count = len(pts)
    values = {
        "dts": np.arange(count, dtype=float),
        "is_keyframe": np.isin(np.arange(count), keyframes),
        "is_shown": np.ones(count, bool),
        "position": 100 * np.arange(count),
        "is_suspect": np.zeros(count, bool),
    }
    values |= {name: np.array(column) for name, column in columns.items()}
    return Packets(pts=np.array(pts, float), **values)


def test_frames_are_shown_in_the_order_of_their_times() -> None:
    order = _packets([0, 3, 1, 2], is_shown=[True, True, False, True]).presentation_order()
    assert order is not None
    assert order.tolist() == [0, 3, 1]


@pytest.mark.parametrize(
    "packets",
    [
        pytest.param(_packets([0, NAN, 2]), id="a time is missing"),
        pytest.param(_packets([0, 1, 1]), id="a time is used twice"),
        pytest.param(_packets([0, 1, 2], keyframes=(1,)), id="begins without a keyframe"),
        pytest.param(_packets([1, 0, 2]), id="a frame before the first keyframe"),
        pytest.param(_packets([0, 1], is_shown=[False, False]), id="nothing is shown"),
    ],
)
def test_times_that_do_not_tell_the_order(packets: Packets) -> None:
    assert packets.presentation_order() is None


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        pytest.param("PPP", [0, 1, 2], id="no B-frames"),
        pytest.param("PPBPBB", [0, 2, 1, 4, 5, 3], id="B-frames"),
        pytest.param("P", [0], id="one frame"),
        pytest.param("PBP", None, id="a B-frame after one reference"),
        pytest.param("BPP", None, id="begins with a B-frame"),
        pytest.param("BB", None, id="B-frames only"),
    ],
)
def test_the_order_of_mpeg4_frames(kinds: str, expected: list[int] | None) -> None:
    order = order_of_vops(np.array([kind == "B" for kind in kinds]))
    assert (None if order is None else order.tolist()) == expected


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("000001b6 50", False),
        ("000001b6 10", False),
        ("000001b6 90", True),
        ("000001b3 00 000001b6 80", True),
    ],
)
def test_the_type_of_an_mpeg4_frame(header: str, expected: bool) -> None:
    data = bytes.fromhex(header.replace(" ", ""))
    assert is_b_vop(data + bytes(16)) == expected
    assert is_b_vop(data) is None  # may be a frame that is not coded
    assert is_b_vop(bytes(40)) is None


@pytest.mark.parametrize(
    ("pts", "may_jump", "expected", "all_known"),
    [
        pytest.param([10, 10.5, 12], False, [0, 0.5, 2], True, id="starts at ten seconds"),
        pytest.param([-2, -1, 0], False, [0, 1, 2], True, id="negative"),
        pytest.param([0, NAN, NAN], False, [0, 0.25, 0.5], False, id="unknown"),
        pytest.param([5, 6, 0, 1], True, [0, 1, 1.25, 2.25], False, id="back"),
        pytest.param([0, 1, 101, 102], True, [0, 1, 1.25, 2.25], False, id="a jump"),
        pytest.param([0, 1, 101, 102], False, [0, 1, 101, 102], True, id="a pause"),
    ],
)
def test_frame_times(pts: list[float], may_jump: bool, expected: list[float], all_known: bool) -> None:
    times, known = _packets(pts).frame_times(np.arange(len(pts)), 0.25, may_jump=may_jump)
    assert times.tolist() == expected
    assert known == all_known


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        pytest.param([0, 100, 200], Loss(), id="all there"),
        pytest.param([0, 100], Loss(), id="more than listed"),
        pytest.param([0, 100, 200, 300, 400], Loss(2, is_at_end=True), id="cut"),
        pytest.param([0, 50, 60, 100, 200, 300], Loss(3, before=(1,)), id="in the middle and at the end"),
        pytest.param([-8, 42, 92, 192], Loss(1, before=(1,)), id="the index names the headers of chunks"),
    ],
)
def test_loss_by_index(listed: list[int], expected: Loss) -> None:
    assert loss_by_index(_packets([0, 1, 2]), listed) == expected


@pytest.mark.parametrize(
    ("suspect", "ended_early", "may_jump", "expected"),
    [
        pytest.param([], False, False, Loss(), id="a pause"),
        pytest.param([3], False, False, Loss(3, before=(3,)), id="a gap"),
        pytest.param([3], False, True, Loss(3, before=(3,)), id="a gap where times may jump"),
        pytest.param([4], False, False, Loss(), id="damage after the pause"),
        pytest.param([3], True, False, Loss(5, before=(3,)), id="a gap and the end"),
        pytest.param([], True, False, Loss(2, is_at_end=True), id="the end"),
    ],
)
def test_a_gap_is_a_loss_where_the_reader_reports_damage(
    suspect: list[int], ended_early: bool, may_jump: bool, expected: Loss
) -> None:
    """Frames 0, 1, 2, 6 and 7 of a video of ten seconds."""
    packets = _packets([0, 1, 2, 6, 7], is_suspect=np.isin(np.arange(5), suspect))
    found = loss_by_time(packets, duration_sec=10, ended_early=ended_early, may_jump=may_jump)
    assert found == expected


def test_a_jump_between_recordings_is_no_loss() -> None:
    packets = _packets([0, 1, 2, 62, 63], is_suspect=[False, False, False, True, False])
    assert loss_by_time(packets, duration_sec=0, ended_early=False, may_jump=True) == Loss()
    found = loss_by_time(packets, duration_sec=0, ended_early=False, may_jump=False)
    assert found == Loss(59, before=(3,))


def test_damage_lasts_to_the_next_keyframe() -> None:
    packets = _packets(list(range(9)), keyframes=(0, 3, 6))
    damage = Damage(packets, Loss(2, before=(2, 6)))
    damage.add_lost(4)
    affected = [number for number in range(9) if damage.affects(number, is_corrupt=number == 7)]
    # 2: packets before it are missing; 4: is lost itself; those before 6 end at this keyframe; 7: is corrupt.
    assert affected == [2, 4, 5, 7, 8]
    assert (damage.num_missing, damage.num_damaged) == (3, 5)
