"""Intervals and paired tests against scipy and statsmodels, and against numbers worked out by hand."""

import numpy as np
import pytest
import scipy.stats
import statsmodels.api as sm
from statsmodels.stats.contingency_tables import mcnemar as their_mcnemar

from ift_components.statistics import bootstrap_interval, bootstrap_means, compare_paired, mcnemar, mean_sd


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


def test_paired_difference():
    values, clusters = clustered(3)
    same = compare_paired(values, values, clusters)
    assert (same.difference, same.low, same.high, same.p_bootstrap, same.p_mcnemar) == (0, 0, 0, 1, 1)
    rng = np.random.default_rng(0)
    better = [max(value, float(rng.random() < 0.3)) for value in values]
    found = compare_paired(values, better, clusters)
    assert found.difference == pytest.approx(np.mean(better) - np.mean(values))
    assert 0 < found.low < found.difference < found.high
    assert found.p_bootstrap < 0.001
    assert found.p_mcnemar < 1e-6
    back = compare_paired(better, values, clusters)
    assert (back.difference, back.only_first) == (pytest.approx(-found.difference), found.only_second)
    gains = np.array(better) - np.array(values)
    fit = sm.OLS(gains, np.ones(len(gains))).fit(
        cov_type="cluster", cov_kwds={"groups": [int(name.removeprefix("image")) for name in clusters]}
    )
    assert (found.low, found.high) == pytest.approx(fit.conf_int()[0], abs=0.006)


def test_pairing_keeps_the_questions_apart():
    with pytest.raises(ValueError, match="shorter"):
        mcnemar([True, False], [True])


def test_seeds():
    assert mean_sd([0.6, 0.7, 0.8]) == (pytest.approx(0.7), pytest.approx(0.1))
    assert mean_sd([0.6]) == (0.6, None)
