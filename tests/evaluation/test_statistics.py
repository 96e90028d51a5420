"""Intervals and paired tests against scipy and statsmodels, and against numbers worked out by hand."""

from collections import Counter

import numpy as np
import pytest
import scipy.stats
import statsmodels.api as sm
from statsmodels.stats.contingency_tables import mcnemar as their_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from ift_components.statistics import (
    bootstrap_cells,
    bootstrap_interval,
    bootstrap_means,
    compare_methods,
    holm,
    influences,
    mcnemar,
    mean_interval,
    mean_sd,
    share_interval,
    wilson_interval,
)


def clustered(seed, images=150):
    """Answers whose rightness depends on the image, with 1 to 9 questions an image."""
    rng = np.random.default_rng(seed)
    values, clusters = [], []
    for image in range(images):
        ability = rng.beta(1, 1)
        for _ in range(rng.integers(1, 10)):
            values.append(float(rng.random() < ability))
            clusters.append(f"image{image}")
    return values, clusters


def test_interval_of_independent_questions_is_scipys():
    values, _ = clustered(0)
    ours = bootstrap_interval(values, list(range(len(values))), draws=20_000)
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)
    )
    assert ours == pytest.approx((theirs.confidence_interval.low, theirs.confidence_interval.high), abs=0.002)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_clustered_standard_error_is_the_sandwich_estimators(seed):
    values, clusters = clustered(seed)
    numbers = [int(name.removeprefix("image")) for name in clusters]
    fit = sm.OLS(values, np.ones(len(values))).fit(cov_type="cluster", cov_kwds={"groups": numbers})
    ours = bootstrap_means(values, clusters, draws=20_000).std()
    assert ours == pytest.approx(fit.bse[0], rel=0.05)
    independent = bootstrap_means(values, list(range(len(values))), draws=20_000).std()
    assert ours > 1.3 * independent  # ignoring the clusters would promise too much
    low, high = bootstrap_interval(values, clusters)
    assert (low, high) == pytest.approx((fit.conf_int()[0]), abs=0.006)


def test_interval_covers_as_often_as_it_says():
    """Of 300 samples drawn from a known world, about 95 % of the intervals hold its accuracy, 0.5."""
    hits = 0
    for seed in range(300):
        values, clusters = clustered(seed + 100, images=80)
        low, high = bootstrap_interval(values, clusters, draws=500, seed=seed)
        hits += low <= 0.5 <= high
    assert 0.91 <= hits / 300 <= 0.98


@pytest.mark.parametrize(("b", "c"), [(0, 0), (3, 9), (10, 10), (0, 6), (120, 80)])
def test_mcnemar_is_statsmodels(b, c):
    first = [True] * b + [False] * c + [True] * 20 + [False] * 7
    second = [False] * b + [True] * c + [True] * 20 + [False] * 7
    theirs = their_mcnemar([[20, b], [c, 7]], exact=True)
    assert mcnemar(first, second) == (b, c, pytest.approx(min(1.0, theirs.pvalue)))


def test_two_checkpoints_differ_as_a_clustered_regression_says():
    values, clusters = clustered(3)
    rng = np.random.default_rng(0)
    better = [max(value, float(rng.random() < 0.3)) for value in values]
    found = compare_methods(np.array([values]), np.array([better]), clusters)
    assert found.difference == pytest.approx(np.mean(better) - np.mean(values))
    gains = np.array(better) - np.array(values)
    fit = sm.OLS(gains, np.ones(len(gains))).fit(
        cov_type="cluster", cov_kwds={"groups": [int(name.removeprefix("image")) for name in clusters]}, use_t=True
    )
    assert (found.low, found.high) == pytest.approx(fit.conf_int()[0], abs=0.002)
    back = compare_methods(np.array([better]), np.array([values]), clusters)
    assert (back.difference, back.p) == (pytest.approx(-found.difference), pytest.approx(found.p))


def test_pairing_keeps_the_questions_apart():
    with pytest.raises(ValueError, match="shorter"):
        mcnemar([True, False], [True])


def test_seeds():
    assert mean_sd([0.6, 0.7, 0.8]) == (pytest.approx(0.7), pytest.approx(0.1))
    assert mean_sd([0.6]) == (0.6, None)


@pytest.mark.parametrize(("right", "count"), [(0, 30), (1, 30), (29, 30), (30, 30), (12, 40)])
def test_wilson_is_statsmodels(right, count):
    assert wilson_interval(right / count, count) == pytest.approx(proportion_confint(right, count, method="wilson"))


@pytest.mark.parametrize("count", range(1, 60))
def test_the_mean_of_intervals_stays_between_0_and_1(count):
    """Three of three wrong, or all right: rounding must not give -0.0 %."""
    for share in (0.0, 1.0):
        low, high = wilson_interval(share, count)
        assert low <= share <= high
        low, high = mean_interval([share], [(low, high)])
        assert share in (low, high)
        assert 0 <= low <= high <= 1


def test_the_interval_of_a_small_group_covers_where_the_bootstrap_does_not():
    """30 questions, p = 0.95: the percentile interval covers about three times of four."""
    rng = np.random.default_rng(0)
    hits = {"ours": 0, "bootstrap": 0}
    for _ in range(300):
        values = (rng.random(30) < 0.95).astype(float).tolist()
        for name, interval in (("ours", share_interval), ("bootstrap", bootstrap_interval)):
            low, high = interval(values, range(30), draws=400)
            hits[name] += low <= 0.95 <= high
    assert hits["bootstrap"] / 300 < 0.85
    assert hits["ours"] / 300 >= 0.91


def test_holm_is_statsmodels():
    rng = np.random.default_rng(1)
    values = [*rng.random(20) ** 3, 0.5, 0.5]
    assert holm(values) == pytest.approx(multipletests(values, method="holm")[1])


def test_contributions_estimate_the_bootstraps_variance():
    values, clusters = clustered(2)
    cells = [number % 3 for number in range(len(values))]
    (estimate,), contributions = influences(np.array([values]), clusters, cells)
    names, replicates = bootstrap_cells(values, clusters, cells, draws=4000)
    assert sorted(names) == [0, 1, 2]
    assert estimate == pytest.approx(np.mean([np.mean(np.array(values)[np.array(cells) == c]) for c in range(3)]))
    assert (contributions**2).sum() ** 0.5 == pytest.approx(replicates.mean(axis=1).std(), rel=0.06)


def methods(rng, images, sd, gain=0.0):
    """Answers of two methods, three seeds each; a seed's accuracy varies by about `sd`, and images differ in difficulty."""
    difficulty = rng.normal(0.5, 1.2, images)

    def runs(shift):
        level = difficulty + rng.normal(shift / 0.2, sd / 0.2, (3, 1)) + rng.normal(0, 1, (3, images))
        return (rng.random((3, images)) < 1 / (1 + np.exp(-level))).astype(float)

    return runs(0.0), runs(gain)


def false_alarms(sd, images, worlds, seed):
    rng = np.random.default_rng(seed)
    return np.mean([compare_methods(*methods(rng, images, sd), range(images)).p <= 0.05 for _ in range(worlds)])


def test_methods_that_differ_and_methods_that_do_not():
    found = compare_methods(*methods(np.random.default_rng(0), 1000, 0.01, gain=0.15), range(1000))
    assert found.low < found.difference < found.high
    assert 0.05 < found.difference < 0.3
    assert found.p < 0.01
    assert found.seeds == (3, 3)
    first, _ = methods(np.random.default_rng(1), 50, 0.02)
    same = compare_methods(first, first, range(50))
    assert (same.difference, same.p) == (0, 1)
    single = compare_methods(first[:1], first[1:2], range(50))  # two checkpoints: no seeds to speak of
    assert single.sd_seeds == 0
    assert false_alarms(0.03, 300, 400, 7) < 0.09


def balanced_p(rng, questions=200, attributes=12):
    """Two equal checkpoints, compared by balanced accuracy over few questions: many classes have one question or two."""
    attribute = rng.integers(0, attributes, questions)
    cells = [(int(a), int(c)) for a, c in zip(attribute, rng.choice(3, questions, p=[0.7, 0.22, 0.08]), strict=True)]
    classes = Counter(name for name, _ in set(cells))
    weights = {cell: 1 / (len(classes) * classes[cell[0]]) for cell in cells}
    first, second = ((rng.random((1, questions)) < 0.55).astype(float) for _ in range(2))
    return compare_methods(first, second, range(questions), cells, weights).p


def test_small_classes_raise_no_false_alarm():
    rng = np.random.default_rng(5)
    assert np.mean([balanced_p(rng) <= 0.05 for _ in range(600)]) <= 0.08


@pytest.mark.slow
@pytest.mark.parametrize("sd", [0.01, 0.02, 0.03, 0.05])
def test_false_alarms_of_equal_methods_come_as_often_as_promised(sd):
    rates = [false_alarms(sd, images, 2000, seed) for seed, images in enumerate((300, 1000))]
    assert 0.03 <= np.mean(rates) <= 0.07
