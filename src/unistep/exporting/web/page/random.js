// The random numbers of images, as docs/randomness.md defines them: functions of (seed, stream, index, draw, position).

export const STREAMS = { IMAGES: 0n, LABELS: 0x1abe1n, DEGRADE: 0xde6n, GUESS: 0x6e55n };

const GAMMA = 0x9e3779b97f4a7c15n, WORD = 0xffffffffn, ALL = 0xffffffffffffffffn;

function mix64(v) {
  v = ((v ^ (v >> 30n)) * 0xbf58476d1ce4e5b9n) & ALL;
  v = ((v ^ (v >> 27n)) * 0x94d049bb133111ebn) & ALL;
  return v ^ (v >> 31n);
}

function mix32(v) {
  v = ((v ^ (v >> 16n)) * 0x85ebca6bn) & WORD;
  v = ((v ^ (v >> 13n)) * 0xc2b2ae35n) & WORD;
  return v ^ (v >> 16n);
}

// The key of image `index` of a run as a BigInt of 63 bits; `seed` and `index` are numbers or BigInts.
export function imageSeed(seed, index, stream = STREAMS.IMAGES) {
  const at = BigInt(index) & ALL;
  const run = mix64(((BigInt(seed) ^ stream) + GAMMA) & ALL);
  const low = mix32(mix32((at ^ run) & WORD) ^ (run >> 32n));
  const high = mix64(((run ^ at) + GAMMA) & ALL) >> 33n;
  return (high << 32n) | low;
}

// The upper 32 bits of a product of two words.
function high(a, b) {
  const a0 = a & 0xffff, a1 = a >>> 16, b0 = b & 0xffff, b1 = b >>> 16;
  const middle = a1 * b0 + ((a0 * b0) >>> 16);
  return (a1 * b1 + (middle >>> 16) + ((a0 * b1 + (middle & 0xffff)) >>> 16)) >>> 0;
}

// Philox4x32-10: writes the four words of a counter (four words) under a key (two words) to `out`.
export function philox(counter, key, out) {
  let [c0, c1, c2, c3] = counter, [k0, k1] = key;
  for (let round = 0; round < 10; round++) {
    const h0 = high(0xd2511f53, c0), l0 = Math.imul(0xd2511f53, c0), h1 = high(0xcd9e8d57, c2), l1 = Math.imul(0xcd9e8d57, c2);
    c0 = (h1 ^ c1 ^ k0) >>> 0;
    c1 = l1 >>> 0;
    c2 = (h0 ^ c3 ^ k1) >>> 0;
    c3 = l0 >>> 0;
    k0 = (k0 + 0x9e3779b9) >>> 0;
    k1 = (k1 + 0xbb67ae85) >>> 0;
  }
  out[0] = c0; out[1] = c1; out[2] = c2; out[3] = c3;
  return out;
}

// Numbers of a batch of images, each from its own key; one call of `randn` is one draw.
export class ImageRandom {
  constructor(keys) {
    this.keys = keys.map((key) => [Number(BigInt(key) & WORD), Number((BigInt(key) >> 32n) & WORD)]);
    this.draws = 0;
  }

  // Unit normals, `count` an image, one image after the other.
  randn(count) {
    const all = new Float32Array(this.keys.length * count), draw = this.draws++, words = [0, 0, 0, 0];
    this.keys.forEach((key, row) => {
      const base = row * count;
      for (let block = 0; 4 * block < count; block++) {
        philox([block, draw, 0, 0], key, words);
        for (let pair = 0; pair < 4; pair += 2) {
          const at = 4 * block + pair;
          if (at >= count) break;
          const r = Math.sqrt(-2 * Math.log((words[pair] + 0.5) * 2 ** -32)), t = words[pair + 1] * (2 * Math.PI * 2 ** -32);
          all[base + at] = Math.cos(t) * r;
          if (at + 1 < count) all[base + at + 1] = Math.sin(t) * r;
        }
      }
    });
    return all;
  }
}

// The class that an image is given where none is named.
export function drawnLabel(seed, index, classes) {
  return Number(imageSeed(seed, index, STREAMS.LABELS) % BigInt(classes));
}
