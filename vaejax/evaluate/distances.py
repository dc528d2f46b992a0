"""Fréchet and kernel distances between two sets of features, and bootstrap intervals.

Both distances compare whole sets; they are never means over batches. The Fréchet distance is biased upward
for few samples, and more so if features have many dimensions. Compare it only at the same number of samples.
The kernel distance is unbiased; prefer it for small sets.
"""

from collections.abc import Callable

import numpy as np

from vaejax.errors import InputError

_ROWS = 1024  # rows of the kernel matrix computed at a time; memory then grows with N, not N²
_NORMAL_95 = 1.959964  # half-width of a Gaussian's two-sided 95% interval, in standard deviations


def frechet_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Fréchet distance between Gaussians fitted to the sets (arXiv 1706.08500, eq. 6).

    The distance is |mean_x - mean_y|² + tr(Σ_x + Σ_y - 2 (Σ_x Σ_y)^½). It is FVD for I3D's logits and FID for
    Inception's features. With Σ = AᵀA, the trace of (Σ_x Σ_y)^½ is the sum of the singular values of
    A_x A_yᵀ. This avoids the root of a matrix that is singular if there are fewer samples than features.

    Args:
      x: features (N, d), N at least 2.
      y: features (M, d), M at least 2.

    Returns:
      The distance, at least 0, computed in float64.

    Raises:
      InputError: if x and y do not have the shapes above, or contain values that are not finite.
    """
    x, y = _checked(x, y)
    shift = x.mean(0) - y.mean(0)
    a, b = _root(x), _root(y)
    spread = np.square(a).sum() + np.square(b).sum()
    overlap = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return max(0.0, float(shift @ shift + spread - 2 * overlap))


def kernel_distance(x: np.ndarray, y: np.ndarray, paired: bool = False) -> float:
    """Unbiased squared maximum mean discrepancy with kernel (x·y/d + 1)³ (arXiv 1801.01401).

    It is KID for features of images and KVD for features of clips. All samples enter one estimate, not a mean
    over subsets.

    Args:
      x: features (N, d), N at least 2.
      y: features (M, d), M at least 2.
      paired: whether y_i is made from x_i, like a reconstruction. If so, pairs (x_i, y_i) are omitted, as
        pairs (x_i, x_i) always are (Gretton et al. 2012, eq. 4): their similarity would pull the estimate
        below 0. Without these pairs, identical sets have distance 0. Must be False for independent sets.

    Returns:
      The distance; it can be slightly negative if the sets hardly differ.

    Raises:
      InputError: like `frechet_distance`, and if paired sets differ in length.
    """
    x, y = _checked(x, y)
    n, m = len(x), len(y)
    if paired:
        _check_pairs(n, m)
    # NumPy multiplies a matrix with itself by a special routine, which rounds differently. A copy avoids it.
    within_x = _kernel_sum(x, x.copy(), skip_diagonal=True) / (n * (n - 1))
    within_y = _kernel_sum(y, y.copy(), skip_diagonal=True) / (m * (m - 1))
    across = _kernel_sum(x, y, skip_diagonal=paired) / (n * (m - paired))
    return within_x + within_y - 2 * across


def interval(
    distance: Callable[[np.ndarray, np.ndarray], float],
    x: np.ndarray,
    y: np.ndarray,
    seed: int = 0,
    resamples: int = 100,
    paired: bool = True,
) -> tuple[float, float]:
    """A 95% bootstrap interval of a distance: the estimate ± 1.96 standard deviations of the resamples.

    It covers the expected distance at this number of samples. Resamples give only the standard deviation:
    their distances are biased upward, because a resample repeats samples. On 100 samples of 50 features,
    percentile intervals covered the truth 0 to 13 times in 100, this interval 95 to 100 times. This interval
    is too wide if the sets hardly differ.

    Args:
      distance: function of features (N, d) and (M, d).
      x: features (N, d), or (N, F, d) with F vectors per sample, such as one per frame of a clip. The F
        vectors are not independent, so they are drawn together.
      y: features (M, d) or (M, F, d).
      seed: seed of the resampling.
      resamples: number of resamples; the distance is computed for each. With 100, the standard deviation has
        an error of 7%.
      paired: whether y_i is made from x_i. If so, both are drawn together; otherwise independently.

    Returns:
      (low, high).

    Raises:
      InputError: like `distance`, and if paired sets differ in length.
    """
    n, m = len(x), len(y)
    if paired:
        _check_pairs(n, m)

    def at(i: np.ndarray | slice, j: np.ndarray | slice) -> float:
        return distance(x[i].reshape(-1, x.shape[-1]), y[j].reshape(-1, y.shape[-1]))

    rng, values = np.random.default_rng(seed), []
    estimate = at(slice(None), slice(None))
    for _ in range(resamples):
        i = rng.integers(n, size=n)
        values.append(at(i, i if paired else rng.integers(m, size=m)))
    reach = _NORMAL_95 * float(np.std(values, ddof=1))
    return estimate - reach, estimate + reach


def mean_interval(values: np.ndarray, seed: int = 0, resamples: int = 1000) -> tuple[float, float]:
    """A 95% bootstrap percentile interval of the mean of scores.

    Args:
      values: one score per independent sample, (N,): per clip, not per frame.
      seed: seed of the resampling.
      resamples: number of resampled means.

    Returns:
      (low, high); both infinite if all scores are, NaN for fewer than two scores.
    """
    values = np.asarray(values, np.float64)
    if len(values) < 2:
        return np.nan, np.nan
    rng = np.random.default_rng(seed)
    means = [values[rng.integers(len(values), size=len(values))].mean() for _ in range(resamples)]
    # Quantiles are not interpolated: between two infinite means, interpolation would give NaN.
    low, high = np.quantile(means, 0.025, method="lower"), np.quantile(means, 0.975, method="higher")
    return float(low), float(high)


def _checked(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise InputError(
            f"features of shapes {x.shape} and {y.shape}; accepted: (N, d) and (M, d), N and M at least 2"
        )
    for features in (x, y):
        bad = int((~np.isfinite(features).all(1)).sum())
        if bad:
            raise InputError(
                f"features of {bad} of {len(features)} samples are not finite; accepted: finite features"
            )
    return x, y


def _check_pairs(n: int, m: int) -> None:
    if n != m:
        raise InputError(f"paired features of {n} and {m} samples; accepted: equal numbers")


def _root(x: np.ndarray) -> np.ndarray:
    """A matrix A of at most d rows such that AᵀA is the covariance of x."""
    a = (x - x.mean(0)) / np.sqrt(len(x) - 1)
    return np.asarray(np.linalg.qr(a, mode="r")) if len(a) > a.shape[1] else a


def _kernel_sum(x: np.ndarray, y: np.ndarray, skip_diagonal: bool) -> float:
    total, d = 0.0, x.shape[1]
    for start in range(0, len(x), _ROWS):
        rows = x[start : start + _ROWS]
        kernel = (rows @ y.T / d + 1) ** 3
        if skip_diagonal:
            i = np.arange(len(rows))
            kernel[i, start + i] = 0
        total += float(kernel.sum())
    return total
