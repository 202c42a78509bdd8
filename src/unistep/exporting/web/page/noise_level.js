// The Gaussian noise of a picture, estimated from its finest diagonal differences where it is quiet around them; the
// method and its constants are those of unistep.editing.noise_level.

const MEDIAN = 0.6744897501960817, QUIET = 0.25, KEPT = 2, ITERATIONS = 10, HALVED = 0.097, FADES = 0.19;

const sorted = (values) => Float64Array.from(values).sort();
const median = (values) => sorted(values)[(values.length - 1) >> 1];

// Standard deviation of the noise of an image in [-1, 1].
export function estimateNoise(x, [channels, height, width]) {
  if (Math.min(height, width) < 4) throw new Error("The picture is too small to estimate its noise.");
  const { coefficient, mean, variance } = windows(x, channels, height, width);
  const clipped = x.every((v) => Math.abs(v) <= 1 + 1e-6);
  const quiet = Math.max(Math.floor(coefficient.length * QUIET), 1);
  const order = Array.from(variance.keys()).sort((a, b) => variance[a] - variance[b] || a - b);
  let sigma = median(order.slice(0, quiet).map((i) => coefficient[i])) / MEDIAN;
  for (let n = 0; n < ITERATIONS; n++) {
    const share = clipped ? kept(mean, Math.min(Math.max(sigma, 1e-4), 100)) : () => [1, 1];
    const shares = Array.from(mean.keys(), share);
    const around = shares.map(([spread], i) => variance[i] / spread ** 2);
    const bound = Math.max(KEPT * sigma ** 2, sorted(around)[quiet - 1]);
    const counted = [];
    around.forEach((v, i) => { if (v <= bound) counted.push(coefficient[i] / shares[i][1]); });
    sigma = Math.min(median(counted) / MEDIAN, 100);
  }
  return sigma;
}

// |h| of every 2 x 2 pixels, and mean and variance of the twelve around.
function windows(x, channels, height, width) {
  const coefficient = [], mean = [], variance = [];
  for (let c = 0; c < channels; c++) for (let top = 0; top + 4 <= height; top++) for (let left = 0; left + 4 <= width; left++) {
    let sum = 0, squares = 0;
    const at = (i, j) => x[(c * height + top + i) * width + left + j];
    for (let i = 0; i < 4; i++) for (let j = 0; j < 4; j++) {
      if ((i === 1 || i === 2) && (j === 1 || j === 2)) continue;
      sum += at(i, j);
      squares += at(i, j) ** 2;
    }
    coefficient.push(Math.abs(at(1, 1) - at(1, 2) - at(2, 1) + at(2, 2)) / 2);
    mean.push(sum / 12);
    variance.push(Math.max(squares / 12 - (sum / 12) ** 2, 0) * (12 / 11));
  }
  return { coefficient, mean, variance };
}

// A function of a window's number: standard deviation and median of |h| that clipping to [-1, 1] leaves, in units of sigma.
function kept(mean, sigma) {
  const moments = Array.from({ length: 33 }, (_, i) => clippedMoments(-1 + i / 16, sigma));
  const means = moments.map(([m]) => m), spreads = moments.map(([, s]) => s);
  return (i) => {
    let right = means.findIndex((m) => m >= mean[i]);
    right = Math.min(Math.max(right < 0 ? 33 : right, 1), 32);
    const share = (mean[i] - means[right - 1]) / Math.max(means[right] - means[right - 1], 1e-12);
    let spread = spreads[right - 1] + share * (spreads[right] - spreads[right - 1]);
    spread = Math.max(spread, spreads[0] / 2) / sigma;
    const inwards = Math.max(Math.min(mean[i] - means[0], means[32] - mean[i]), 0) / sigma;
    return [spread, spread * (1 - HALVED * Math.exp(-inwards / FADES))];
  };
}

// Mean and standard deviation of m + sigma n clipped to [-1, 1].
function clippedMoments(m, s) {
  const a = (-1 - m) / s, b = (1 - m) / s, below = ndtr(a), above = ndtr(-b), inside = 1 - below - above;
  const [da, db] = [a, b].map((z) => Math.exp(-(z ** 2) / 2) / Math.sqrt(2 * Math.PI));
  const mean = above - below + m * inside + s * (da - db);
  const square = below * (1 + m) ** 2 + above * (1 - m) ** 2 + s ** 2 * inside + s ** 2 * (a * da - b * db);
  return [mean, Math.sqrt(Math.max(square - (mean - m) ** 2, 0))];
}

// Probability that a unit normal lies below z: a series near 0, a continued fraction beyond.
function ndtr(z) {
  const size = Math.abs(z), density = Math.exp(-(z ** 2) / 2) / Math.sqrt(2 * Math.PI);
  if (size < 3) {
    let term = z, sum = z;
    for (let n = 3; Math.abs(term) > 1e-17; n += 2) sum += term *= (z * z) / n;
    return 0.5 + density * sum;
  }
  let fraction = size;
  for (let n = 60; n > 0; n--) fraction = size + n / fraction;
  return z < 0 ? density / fraction : 1 - density / fraction;
}
