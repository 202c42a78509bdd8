// Linear operators that measure one image, their pseudoinverses, and images that agree with a measurement.
//
// An operator has `A(x)`, the measurement of an image, and `pinv(y)`, the image of least norm with a measurement.

const EPSILON_ROUNDED = 6e-3; // three quarters of a step of 8 bits: pictures are rounded
const ROUNDS = 1000, WINDOW = 100;

// Pixels that are known, in every channel: `known` is true or false a pixel.
export function masked(known, channels) {
  const places = [];
  for (let c = 0; c < channels; c++) for (let p = 0; p < known.length; p++) if (known[p]) places.push(c * known.length + p);
  return {
    A: (x) => Float32Array.from(places, (p) => x[p]),
    pinv: (y) => {
      const x = new Float32Array(known.length * channels);
      places.forEach((p, i) => { x[p] = y[i]; });
      return x;
    },
  };
}

// Means of patches of factor x factor pixels.
export function patches([channels, height, width], factor) {
  const h = height / factor, w = width / factor;
  const each = (visit) => {
    for (let c = 0; c < channels; c++) for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) {
      visit((c * height + y) * width + x, (c * h + Math.floor(y / factor)) * w + Math.floor(x / factor));
    }
  };
  return {
    A: (x) => {
      const sums = new Float64Array(channels * h * w);
      each((from, to) => { sums[to] += x[from]; });
      return Float32Array.from(sums, (sum) => sum / factor ** 2);
    },
    pinv: (y) => {
      const x = new Float32Array(channels * height * width);
      each((to, from) => { x[to] = y[from]; });
      return x;
    },
  };
}

// Luma of colour images.
export function luma() {
  const weights = [0.2989, 0.587, 0.114].map((w) => w / 0.9999), norm = weights.reduce((sum, w) => sum + w * w, 0);
  return {
    A: (x) => {
      const size = x.length / 3, y = new Float32Array(size);
      for (let p = 0; p < size; p++) y[p] = weights[0] * x[p] + weights[1] * x[size + p] + weights[2] * x[2 * size + p];
      return y;
    },
    pinv: (y) => Float32Array.from({ length: 3 * y.length }, (_, i) => (y[i % y.length] * weights[Math.floor(i / y.length)]) / norm),
  };
}

// A Gaussian blur of images that are reflected at their borders, in the band that it leaves: diagonal in the cosine basis.
export function blur([channels, height, width], sigma, threshold = 0.05) {
  const [rows, columns] = [cosines(height), cosines(width)], [ky, kx] = [transfer(height, sigma), transfer(width, sigma)];
  const response = Float64Array.from({ length: height * width }, (_, i) => {
    const k = ky[Math.floor(i / width)] * kx[i % width];
    return k > threshold ? k : 0;
  });
  const filtered = (x, of) => {
    const out = new Float32Array(x.length);
    for (let c = 0; c < channels; c++) {
      const plane = x.subarray(c * height * width, (c + 1) * height * width);
      const waves = bothWays(plane, rows, columns, height, width, false);
      for (let i = 0; i < waves.length; i++) waves[i] *= of(response[i]);
      out.set(bothWays(waves, rows, columns, height, width, true), c * height * width);
    }
    return out;
  };
  return { A: (x) => filtered(x, (k) => k), pinv: (y) => filtered(y, (k) => (k ? 1 / k : 0)) };
}

// The orthonormal cosine transform (DCT-II) of a size as a matrix: row k is the wave of frequency k.
function cosines(n) {
  return Float64Array.from({ length: n * n }, (_, i) => {
    const k = Math.floor(i / n);
    return Math.sqrt((k ? 2 : 1) / n) * Math.cos((Math.PI * k * ((i % n) + 0.5)) / n);
  });
}

function bothWays(x, rows, columns, height, width, inverse) {
  const between = new Float64Array(height * width), out = new Float64Array(height * width);
  for (let y = 0; y < height; y++) for (let k = 0; k < width; k++) {
    let sum = 0;
    for (let i = 0; i < width; i++) sum += x[y * width + i] * columns[inverse ? i * width + k : k * width + i];
    between[y * width + k] = sum;
  }
  for (let k = 0; k < height; k++) for (let i = 0; i < height; i++) {
    const weight = rows[inverse ? i * height + k : k * height + i];
    for (let c = 0; c < width; c++) out[k * width + c] += weight * between[i * width + c];
  }
  return out;
}

// Transform of a Gaussian of sum 1, wrapped around twice `side` pixels, at its first `side` frequencies.
function transfer(side, sigma) {
  const size = 2 * side, wraps = Math.ceil((9 * sigma) / size), kernel = new Float64Array(size);
  let sum = 0;
  for (let i = -wraps * size; i < (wraps + 1) * size; i++) {
    const value = Math.exp(-0.5 * (i / sigma) ** 2);
    kernel[((i % size) + size) % size] += value;
    sum += value;
  }
  return Float64Array.from({ length: side }, (_, k) => kernel.reduce((all, value, i) => all + (value / sum) * Math.cos((2 * Math.PI * k * i) / size), 0));
}

// The image nearest to x with the measurement whose image of least norm is `known`.
export function agree(operator, x, known) {
  const measured = operator.pinv(operator.A(x));
  return x.map((value, i) => Math.fround(known[i] + value) - measured[i]);
}

// Root mean square of the difference of two arrays.
export function distance(a, b) {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += (a[i] - b[i]) ** 2;
  return Math.sqrt(sum / a.length);
}

// An image near x in [-1, 1] that agrees with y as far as there is one: projected gradient descent with momentum.
export function agreeInRange(operator, x, y, tolerance = EPSILON_ROUNDED) {
  const known = operator.pinv(y), goal = operator.A(known), size = x.length;
  const bounded = (value) => (value < -1 ? -1 : value > 1 ? 1 : value);
  x = agree(operator, x, known).map(bounded);
  let last = x, lastWay = new Float32Array(size), momentum = 1, found = x, least = Infinity, before = Infinity;
  for (let i = 0; i < ROUNDS; i++) {
    const measured = operator.A(x), back = operator.pinv(measured);
    const way = known.map((value, p) => value - back[p]);
    let error = 0, square = 0;
    for (let p = 0; p < measured.length; p++) error = Math.max(error, Math.abs(measured[p] - goal[p]));
    for (let p = 0; p < size; p++) square += way[p] * way[p];
    const apart = Math.max(error, Math.sqrt(square / size));
    if (apart < least) [found, least] = [x, apart];
    if (least <= tolerance) break;
    if (i % WINDOW === 0) {
      if (!(least < 0.9 * before)) break;
      before = least;
    }
    const next = (1 + Math.sqrt(1 + 4 * momentum ** 2)) / 2, beyond = (momentum - 1) / next;
    momentum = next;
    const [from, old, oldWay] = [x, last, lastWay];
    x = from.map((value, p) => bounded(value + beyond * (value - old[p]) + way[p] + beyond * (way[p] - oldWay[p])));
    [last, lastWay] = [from, way];
  }
  return found;
}
