"""RelativeHuman's metrics on images small enough to draw: a person is a stick figure of 14 joints around (x, y)."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dto_pipeline.data.sources.relative_human import (
    BK_JOINTS,
    OCHUMAN_JOINTS,
    Annotation,
    KeypointLayoutError,
    evaluated_joints,
)
from dto_pipeline.evaluate.evaluation import EvaluationError
from dto_pipeline.evaluate.rh_evaluation import (
    GROUPS,
    MEASURES,
    RELATIONS,
    EvaluatedImage,
    evaluate_relative_human,
)

FIGURE = np.stack([np.tile([-10.0, 10.0], 7), np.repeat(np.arange(7) * 12.0, 2)], axis=1)  # 20 x 72 px
ADULT, TEEN, KID, BABY = range(4)


def figure_at(x, y=100.0, size=1.0):
    return (FIGURE * size + (x, y)).astype(np.float32)


def person(x, layer=0, age=ADULT, visible=None, size=1.0):
    seen = np.ones(14) if visible is None else np.isin(np.arange(14), visible).astype(float)
    return Annotation(np.column_stack([figure_at(x, size=size), seen * 2]), layer, age)


def image(annotations, predictions, depth, name="123456.jpg", predicted=True):
    keypoints = np.array(predictions, dtype=np.float32).reshape(-1, 14, 2)
    return EvaluatedImage(name, tuple(annotations), keypoints, np.array(depth, np.float32), predicted)


def joints_of(annotation):
    """(14, 3), never None."""
    return np.asarray(annotation.kp2d)


def missing(annotations):
    return image(annotations, [], [], predicted=False)


@pytest.mark.parametrize("mode", ["reference", "corrected"])
def test_pairs_in_the_right_order_over_pairs_and_missed_people_are_the_pcdr(mode):
    people = [person(100, layer=0), person(300, layer=1, age=KID), person(500, layer=1), person(900, layer=2)]
    found = image(people, [figure_at(x) for x in (100, 300, 500, 2000)], [3.0, 4.0, 4.3, 9.0])
    result = evaluate_relative_human([found], mode)
    assert [result.count(name) for name in RELATIONS] == [1, 0, 2]
    assert result.share("pcdr_all") == pytest.approx(
        2 / 3.3
    )  # the two of layer 1 are 0.3 m apart; one person is missed
    assert result.share("pcdr_kid") == pytest.approx(1 / 2)  # the missed one is an adult
    assert result.share("pcdr_baby") is None
    assert (result.count("matched"), result.count("missed_all"), result.count("extra")) == (3, 1, 1)


@pytest.mark.parametrize("mode", ["reference", "corrected"])
def test_depths_exactly_at_the_margin_are_neither_same_nor_apart(mode):
    for first, second, wanted in ((0, 0, 0.0), (0, 1, 0.0), (1, 0, 0.0)):
        pair = [person(100, layer=first), person(300, layer=second)]
        for sign in (1, -1):
            found = image(pair, [figure_at(100), figure_at(300)], [0.0, sign * 0.2])
            assert evaluate_relative_human([found, missing([person(0)])], mode).share("pcdr_all") == wanted


def test_person_without_joints_shifts_the_indices_of_the_reference_only():
    people = [person(100, layer=5, visible=[]), person(300, layer=0, age=TEEN), person(500, layer=1)]
    found = image(people, [figure_at(300), figure_at(500)], [3.0, 4.0])
    reference, corrected = (evaluate_relative_human([found], mode) for mode in ("reference", "corrected"))
    assert reference.matches[0].tolist() == [[0, 0], [1, 1]]
    assert corrected.matches[0].tolist() == [[0, 1], [1, 2]]
    assert reference.share("pcdr_all") == 0.0  # layer 5 was read for the person of layer 0
    assert corrected.share("pcdr_all") == corrected.share("pcdr_teen") == 1.0


def test_person_without_joints_is_missed_by_an_absent_prediction_in_the_reference_only():
    absent = missing([person(100, visible=[]), person(300)])
    reference, corrected = (evaluate_relative_human([absent], mode) for mode in ("reference", "corrected"))
    assert reference.missed[0].tolist() == [0, 1]
    assert corrected.missed[0].tolist() == [1]


@pytest.mark.parametrize("mode", ["reference", "corrected"])
def test_annotations_without_keypoints_are_ignored_and_others_keep_their_index(mode):
    people = [Annotation(None, 0, KID), person(300, layer=0), person(900)]
    for found in (image(people, [figure_at(300)], [3.0]), missing(people)):
        result = evaluate_relative_human([found], mode)
        assert {*result.matches[0][:, 1].tolist(), *result.missed[0].tolist()} == {1, 2}


def test_person_with_one_visible_joint_counts_minus_one_in_the_reference_and_not_at_all_when_corrected():
    people = [person(100, visible=[0], size=3.0), person(600)]
    found = image(people, [figure_at(100, size=3.0), figure_at(600)], [3.0, 4.0])
    assert evaluate_relative_human([found], "corrected").share("mpckh") == 1.0
    stretched = image([person(0, visible=[13])], [figure_at(5)], [3.0])  # a box from (-2, -2) to its one joint
    assert evaluate_relative_human([stretched], "reference").share("mpckh") == -1.0


def test_unlabelled_joints_enlarge_the_boxes_of_the_reference_only():
    far_away = person(900, visible=range(12))
    found = image([far_away], [figure_at(900)], [20.0])
    assert evaluate_relative_human([found], "reference").count("missed_all") == 1
    assert evaluate_relative_human([found], "corrected").count("missed_all") == 0


def test_pairs_without_overlap_use_up_predictions_of_the_reference_only():
    people = [person(100, size=0.1), person(110, size=0.1), person(300, size=3.0)]
    found = image(people, [figure_at(105, size=0.1), figure_at(330, size=3.0)], [3.0, 4.0])
    reference, corrected = (evaluate_relative_human([found], mode) for mode in ("reference", "corrected"))
    # the first prediction stands between the tiny two and touches neither: two refused pairs, two predictions gone
    assert reference.matches[0].tolist() == []
    assert corrected.matches[0].tolist() == [[1, 2]]


def test_nothing_missed_has_a_status_where_the_published_metric_breaks_down():
    found = image([person(100)], [figure_at(100)], [3.0])
    assert evaluate_relative_human([found], "reference").status == "nothing_missed"
    assert evaluate_relative_human([found], "corrected").status == "ok"


@pytest.mark.parametrize("mode", ["reference", "corrected"])
@pytest.mark.parametrize("images", [[], [missing([])], [image([], [figure_at(100)], [2.0])]])
def test_sets_without_people_have_a_status_and_undefined_fractions(images, mode):
    result = evaluate_relative_human(images, mode)
    assert result.status == "no_annotation"
    assert result.share("mpckh") is None
    assert {result.share(f"pcdr_{group}") for group in GROUPS} == {None}


@pytest.mark.parametrize("mode", ["reference", "corrected"])
def test_predictions_that_are_not_finite_match_nobody(mode):
    for bad in (np.nan, np.inf):
        found = image([person(100)], [figure_at(100) * bad, figure_at(101)], [3.0, bad])
        result = evaluate_relative_human([found], mode)
        assert result.matches[0].tolist() == [[1, 0]]


def test_true_positives_of_the_reference_are_predictions_minus_missed():
    found = image([person(100), person(600)], [figure_at(100), figure_at(2000)], [3.0, 4.0])
    many = [found, missing([person(100)] * 4)]
    reference, corrected = (evaluate_relative_human(many, mode) for mode in ("reference", "corrected"))
    assert (reference.share("precision"), reference.share("recall")) == (-3 / -2, -3 / 2)
    assert (corrected.share("precision"), corrected.share("recall")) == pytest.approx((1 / 2, 1 / 6))


def test_nineteen_joints_are_read_by_the_length_of_the_file_name():
    kp2d = np.column_stack([np.arange(19), np.arange(19), np.ones(19)])
    for name, layout in (("1234567.jpg", BK_JOINTS), ("sub/7654321.jpg", BK_JOINTS), ("123456.jpg", OCHUMAN_JOINTS)):
        joints, visible = evaluated_joints(kp2d, name)
        assert joints[0, 0] == layout.index("left_shoulder")
        assert joints[12, 0] == layout.index("head_top")
        assert visible.tolist() == [True] * 13 + [False]  # no neck
        assert joints[13].tolist() == [-2.0, -2.0]


def test_wrong_shapes_are_refused_with_the_name_of_the_image():
    with pytest.raises(KeypointLayoutError, match=r"b\.jpg: a person has 17 keypoints"):
        evaluate_relative_human([image([Annotation(np.zeros((17, 3)), 0, 0)], [], [], name="b.jpg")])
    with pytest.raises(EvaluationError, match="choose from"):
        evaluate_relative_human([], "strict")


def draw_image(seed):
    """A random crowd with overlaps, hidden joints, unknown layers, and predictions in disorder."""
    rng = np.random.default_rng(seed)
    count, extra = rng.integers(0, 6), rng.integers(0, 3)
    people = [
        Annotation(
            np.column_stack([figure_at(rng.uniform(0, 400), size=rng.uniform(0.3, 3)), rng.random(14) < 0.7]),
            int(rng.integers(-1, 4)),
            int(rng.integers(-1, 4)),
        )
        for _ in range(count)
    ]
    guesses = [joints_of(p)[:, :2] + rng.normal(0, 8, (14, 2)) for p in people if rng.random() < 0.8]
    guesses += [figure_at(rng.uniform(0, 400)) for _ in range(extra)]
    order = rng.permutation(len(guesses))
    return image(people, [guesses[i] for i in order], rng.uniform(2, 9, len(guesses)))


def numbers(result):
    """Everything of a result but the images, for comparison; who of a pair is nearer depends on who comes first."""
    shares = {one.key: None if (share := result.share(one.key)) is None else round(share, 6) for one in MEASURES}
    return shares | {name: result.count(name) for name in ("matched", "missed_all", "predictions", "extra", "same")}


seeds = st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=5)


@given(seeds, st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_order_of_predictions_people_and_images_never_changes_the_corrected_metrics(drawn, shuffler):
    images = [draw_image(seed) for seed in drawn]
    shuffled = []
    for one in images:
        people, rows = list(one.annotations), list(range(len(one.depth)))
        shuffler.shuffle(people)
        shuffler.shuffle(rows)
        shuffled.append(image(people, one.keypoints[rows], one.depth[rows]))
    shuffler.shuffle(shuffled)
    assert numbers(evaluate_relative_human(images)) == numbers(evaluate_relative_human(shuffled))


@given(seeds)
@settings(max_examples=40, deadline=None)
def test_perfect_predictions_score_one(drawn):
    def perfect(one):
        people = [p for p in one.annotations if joints_of(p)[:, 2].any()]
        return image(people, [joints_of(p)[:, :2] for p in people], [p.depth_id * 1.0 for p in people])

    result = evaluate_relative_human([perfect(draw_image(seed)) for seed in drawn])
    assert result.count("missed_all") == result.count("extra") == 0
    assert {result.share(f"pcdr_{group}") for group in GROUPS} <= {1.0, None}
    assert result.share("mpckh") in (None, 1.0)
    assert result.share("precision") in (None, 1.0)


@given(seeds, st.sampled_from(["reference", "corrected"]))
@settings(max_examples=40, deadline=None)
def test_everybody_with_joints_leaves_matched_or_missed_once(drawn, mode):
    images = [draw_image(seed) for seed in drawn]
    result = evaluate_relative_human(images, mode)
    for one, matches, missed in zip(images, result.matches, result.missed, strict=True):
        seen = sum(bool(joints_of(p)[:, 2].any()) for p in one.annotations)
        left = [*matches[:, 1].tolist(), *missed.tolist()]
        assert len(left) == len(set(left)) == seen
        assert len(set(matches[:, 0].tolist())) == len(matches)
