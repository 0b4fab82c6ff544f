"""The reference mode against its description read out loud: one person, one pair at a time, no array tricks."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dto_pipeline.data.sources.relative_human import Annotation, evaluated_joints
from dto_pipeline.evaluate.rh_evaluation import GROUPS, EvaluatedImage, evaluate_relative_human


def box(points):
    left, top = points.min(axis=0)
    right, bottom = points.max(axis=0)
    return left, top, right - left + 1, bottom - top + 1


def iou(a, b):
    ax, ay, aw, ah = box(a.astype(float))
    bx, by, bw, bh = box(b.astype(float))
    width = min(ax + aw, bx + bw) - max(ax, bx)
    height = min(ay + ah, by + bh) - max(ay, by)
    shared = max(width, 0.0) * max(height, 0.0)
    return shared / (aw * ah + bw * bh - shared)


def match_literally(image):
    """(matches, missed) of one image, straight from the description."""
    annotated = [i for i, a in enumerate(image.annotations) if a.kp2d is not None]
    if not image.predicted:
        return [], annotated
    people = [evaluated_joints(image.annotations[i].kp2d, image.name) for i in annotated]
    people = [(joints, visible) for joints, visible in people if visible.any()]
    pairs = []
    for p, prediction in enumerate(image.keypoints):
        for a, (joints, visible) in enumerate(people):
            error = (prediction.astype(float) - joints.astype(float))[visible]
            pairs.append((np.linalg.svd(error, compute_uv=False).max(), p, a))
    matches: list[tuple[int, int]] = []
    used_up = 0
    for _, p, a in sorted(pairs):
        if len(matches) == len(people) or len(matches) + used_up >= len(image.keypoints):
            break
        if iou(image.keypoints[p], people[a][0]) < 0.05:
            used_up += 1
        elif p not in [m[0] for m in matches] and a not in [m[1] for m in matches]:
            matches.append((p, a))
    missed = [a for a in range(len(people)) if a not in [m[1] for m in matches]]
    return [(p, annotated[a]) for p, a in matches], [annotated[a] for a in missed]


def metrics_literally(images):
    right, pairs, missed_people = [0.0] * 5, [0] * 5, [0] * 5
    for image in images:
        matches, missed = match_literally(image)
        for m in missed:
            missed_people[0] += 1
            if (age := image.annotations[m].age) >= 0:
                missed_people[1 + age] += 1
        for later, (p2, a2) in enumerate(matches):
            for p1, a1 in matches[:later]:
                first, second = image.annotations[a1], image.annotations[a2]
                if -1 in (first.depth_id, second.depth_id):
                    continue
                dz = image.depth[p2] - image.depth[p1]
                if first.depth_id == second.depth_id:
                    good = abs(dz) < np.float32(0.2)
                else:
                    good = dz < -np.float32(0.2) if second.depth_id < first.depth_id else dz > np.float32(0.2)
                for group in {0, *(1 + a.age for a in (first, second) if a.age >= 0)}:
                    pairs[group] += 1
                    right[group] += bool(good)
    return [r / (n + 0.3 * m) if n else None for r, n, m in zip(right, pairs, missed_people, strict=True)]


def draw_image(seed):
    rng = np.random.default_rng(seed)
    people = []
    for _ in range(rng.integers(0, 6)):
        joints = rng.uniform(0, 60, (rng.choice([14, 19]), 2)) + rng.uniform(0, 250, 2)
        visible = rng.random(len(joints)) < rng.choice([0.0, 0.1, 0.6, 1.0], p=[0.1, 0.1, 0.4, 0.4])
        kp2d = np.column_stack([joints, visible]) if rng.random() < 0.9 else None
        people.append(Annotation(kp2d, int(rng.integers(-1, 4)), int(rng.integers(-1, 4))))
    name = str(rng.choice(["123456.jpg", "1234567.jpg"]))
    seen = [evaluated_joints(p.kp2d, name)[0] for p in people if p.kp2d is not None and rng.random() < 0.8]
    guesses = [joints + rng.normal(0, 6, (14, 2)) for joints in seen]
    guesses += [rng.uniform(0, 300, (14, 2)) for _ in range(rng.integers(0, 3))]
    keypoints = np.array(guesses, np.float32).reshape(-1, 14, 2)
    depth = rng.uniform(2, 6, len(keypoints)).astype(np.float32)
    return EvaluatedImage(name, tuple(people), keypoints, depth, predicted=bool(rng.random() < 0.85))


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=6))
@settings(max_examples=150, deadline=None)
def test_reference_mode_equals_plain_loops_over_the_published_description(seeds):
    images = [draw_image(seed) for seed in seeds]
    result = evaluate_relative_human(images, "reference")
    literally = [match_literally(image) for image in images]
    assert [own.tolist() for own in result.matches] == [[list(pair) for pair in matches] for matches, _ in literally]
    assert [own.tolist() for own in result.missed] == [missed for _, missed in literally]
    np.testing.assert_allclose(
        [result.share(f"pcdr_{group}") or 0.0 for group in GROUPS],
        [value or 0.0 for value in metrics_literally(images)],
        rtol=1e-12,
    )
